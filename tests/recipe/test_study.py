"""Studies: what is run, in which order, under which name."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.study import plan

BASE: dict[str, Any] = {
    "name": "s",
    "data": {"name": "folder", "root": "images"},
    "encoder": {"name": "ViT-B-16", "pretrained": "openai"},
    "tuning": "linear_probe",
    "training": {"epochs": 5, "optimizer": {"name": "sgd", "lr": 0.1}},
}


def expand(grid: dict[str, Any], overrides: Any = None, **more: Any) -> list[dict[str, Any]]:
    return plan(BASE | {"grid": grid} | more, overrides).recipes


def problems(grid: Any, **more: Any) -> list[str]:
    with pytest.raises(RecipeError) as error:
        plan(BASE | {"grid": grid} | more)
    return [str(problem) for problem in error.value.problems]


def test_variants_axes_and_seeds_multiply_in_order() -> None:
    runs = expand(
        {
            "variants": {"ce": {}, "bs": {"balancing.loss": "balanced_softmax"}},
            "axes": {"training.epochs": [1, 2], "training.optimizer.lr": [0.1, 0.2]},
            "seeds": [0, 7],
        }
    )
    assert len(runs) == 16
    assert [(r["name"], r["seed"]) for r in runs[:5]] == [
        ("s/ce/1/0.1", 0),
        ("s/ce/1/0.1", 7),
        ("s/ce/1/0.2", 0),
        ("s/ce/1/0.2", 7),
        ("s/ce/2/0.1", 0),
    ]
    assert {r["balancing"]["loss"]["name"] for r in runs[8:]} == {"balanced_softmax"}
    assert (runs[2]["training"]["epochs"], runs[2]["training"]["optimizer"]["lr"]) == (1, 0.2)


def test_a_study_without_seeds_uses_the_seed_of_the_recipe() -> None:
    assert [r["seed"] for r in expand({"variants": {"a": {}}}, seed=3)] == [3]


def test_a_variant_without_overrides_is_the_base() -> None:
    (run,) = expand({"variants": {"plain": None}})
    assert run["training"]["epochs"] == 5


def test_the_command_line_wins_over_variants() -> None:
    runs = expand({"variants": {"a": {"training.epochs": 1}, "b": {}}}, ["training.epochs=9"])
    assert [r["training"]["epochs"] for r in runs] == [9, 9]


def test_an_axis_wins_over_a_variant() -> None:
    runs = expand({"variants": {"a": {"training.epochs": 1}}, "axes": {"training.epochs": [3, 4]}})
    assert [r["training"]["epochs"] for r in runs] == [3, 4]


def test_the_command_line_can_shrink_the_grid() -> None:
    assert len(expand({"variants": {"a": {}}, "seeds": [0, 1, 2]}, ["grid.seeds=[1]"])) == 1


def test_a_seed_on_the_command_line_is_not_lost() -> None:
    assert {r["seed"] for r in expand({"variants": {"a": {}}}, ["seed=4"])} == {4}


def test_a_variant_that_names_another_component_drops_its_settings() -> None:
    (run,) = expand({"variants": {"adam": {"training.optimizer": "adamw"}}})
    assert run["training"]["optimizer"] == {
        "name": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.999,
    }


def test_runs_that_differ_have_names_that_differ() -> None:
    losses = [{"name": "focal", "gamma": 1.0}, {"name": "focal", "gamma": 3.0}, "focal"]
    names = [r["name"] for r in expand({"axes": {"balancing.loss": losses}})]
    assert len(set(names)) == 3, names


def test_mistakes_are_found_in_every_run_before_any_starts() -> None:
    messages = problems({"variants": {"a": {"balancing.loss": "focall"}, "b": {"head": "cosin"}, "c": {}}})
    assert len(messages) == 2
    assert "(grid, a)" in messages[0]
    assert "focall" in messages[0]
    assert "(grid, b)" in messages[1]


def test_a_mistake_of_the_base_is_reported_once() -> None:
    assert len(problems({"variants": {"a": {}, "b": {}}, "seeds": [0, 1]}, heads="linear")) == 1


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"variant": {}}, ["grid.variant: unknown key", "'variants'"]),
        ({"seeds": 3}, ["grid.seeds", "a list of"]),
        ({"seeds": []}, ["grid.seeds", "must not be empty"]),
        ({"seeds": [-1]}, ["grid.seeds"]),
        ({"axes": {"training.epochs": 5}}, ["grid.axes"]),
        ([1], ["grid: must be a mapping"]),
    ],
)
def test_a_wrong_grid(grid: Any, words: list[str]) -> None:
    message = "\n".join(problems(grid))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("grid", "problem"),
    [
        ({"axes": {"training.epochs": 5}}, "grid.axes: must"),
        ({"seeds": [0, 0]}, "grid.seeds: must"),
        ({"seeds": "many"}, "grid.seeds: must"),
        ({"variants": {"a": {}, "b": 3}}, "grid.variants: must"),
        ({"variants": {}}, "grid.variants: must"),
    ],
)
def test_a_wrong_grid_hides_no_other_problem(grid: Any, problem: str) -> None:
    messages = "\n".join(problems(grid, table={"colums": []}, heads="linear"))
    for expected in (problem, "table.colums: unknown key", "heads: unknown key"):
        assert expected in messages


@pytest.mark.parametrize("grid", [{"variant": {"a": {"tuning": "linear_probe"}}}, [1], {"variants": 3}, {"axes": 3}])
def test_what_an_unreadable_grid_may_set_is_not_missing(grid: Any) -> None:
    recipe = {key: value for key, value in VARIED.items() if key != "tuning"}
    with pytest.raises(RecipeError) as error:
        plan(recipe | {"grid": grid})
    assert "tuning" not in str(error.value)


def test_a_wrong_table_or_plot() -> None:
    message = "\n".join(problems({"seeds": [0]}, table={"column": []}, plot={"x": "overall", "by": 3}))
    assert "table.column: unknown key. Did you mean 'columns'?" in message
    assert "plot.by" in message
    assert "plot.y: missing" in message


def test_an_axis_with_no_values_is_refused() -> None:
    assert "training.epochs" in "\n".join(problems({"axes": {"training.epochs": []}}))


def test_repeated_seeds_are_refused() -> None:
    """A seed counted twice would shrink the standard deviation."""
    assert "seeds" in "\n".join(problems({"seeds": [0, 0, 1]}))


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("training.optimizer.lr", [0.1, 0.2, 0.1]),
        ("training.optimizer.lr", [1, 1.0]),
        ("balancing.loss", ["focal", {"name": "focal"}]),
        ("balancing.loss", [{"name": "focal", "gamma": 1}, {"gamma": 1.0, "name": "focal"}]),
        ("balancing.loss", ["focal", {"name": "focal", "gamma": 2.0}]),  # its default
        ("training.optimizer", ["sgd", {"lr": 0.1}]),  # the same optimizer
    ],
)
def test_an_axis_that_holds_a_value_twice_is_refused(axis: str, values: list[Any]) -> None:
    """A run counted twice would shrink the standard deviation, and give a row twice."""
    assert "once" in "\n".join(problems({"axes": {axis: values}}))


def test_values_that_differ_in_type_alone_may_differ() -> None:
    axes = {"evaluation.geometry": [True, {"split": "train"}], "balancing.post_hoc": [None, "logit_adjustment"]}
    assert len(expand({"axes": axes})) == 4


def test_two_runs_of_one_name_are_refused() -> None:
    assert "must name each run once" in "\n".join(problems({"axes": {"description": ["a/b", "a-b"]}}))


VARIED = BASE | {"grid": {"axes": {"training.epochs": [1, 2]}, "seeds": [0, 1]}}


@pytest.mark.parametrize(
    ("override", "message"),
    [("seed=7", "set grid.seeds to a list"), ("training.epochs=3", "set grid.axes.training.epochs to a list")],
)
def test_the_command_line_cannot_fix_what_the_grid_varies(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan(VARIED, [override])


def test_the_command_line_can_set_the_grid() -> None:
    recipes = plan(VARIED, ["grid.seeds=[7]", "grid.axes.training.epochs=[3]"]).recipes
    assert [(recipe["seed"], recipe["training"]["epochs"]) for recipe in recipes] == [(7, 3)]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"table": {"sort": "overal"}}, "table.sort: unknown table column 'overal'. Did you mean 'overall'?"),
        ({"table": {"columns": ["recipe", "fewer"]}}, "table.columns: unknown table column 'fewer'"),
        ({"plot": {"x": "pairs", "y": ["overall"]}}, "plot.x: unknown table column 'pairs'"),
    ],
)
def test_a_column_that_no_table_has_is_found_before_any_run(section: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan(VARIED | section)
    assert message in str(error.value)
