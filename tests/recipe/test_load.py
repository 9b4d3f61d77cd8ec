"""From files and overrides to one mapping."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from imbalance_vlm import InputError
from imbalance_vlm.recipe.load import find_recipe, list_recipes, load, merge, read_yaml, undotted
from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.study import plan


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(path: Path, *words: str) -> str:
    with pytest.raises(InputError) as error:
        load(path)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


# -- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["1e-3", "1.0e-3", "1E-3", "+1e-3", "0.001"])
def test_every_spelling_of_a_number_is_read_as_a_number(tmp_path: Path, written: str) -> None:
    value = read_yaml(write(tmp_path / "a.yaml", f"lr: {written}"))["lr"]
    assert value == 0.001
    assert isinstance(value, float)


def test_words_that_resemble_numbers_stay_words(tmp_path: Path) -> None:
    content = read_yaml(write(tmp_path / "a.yaml", "a: e3\nb: 1e\nc: ViT-B-16\nd: '1e3'"))
    assert content == {"a": "e3", "b": "1e", "c": "ViT-B-16", "d": "1e3"}


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "x:\n- {a: 1, a: 2}"])
def test_a_key_written_twice_is_refused(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path / "twice.yaml", text), "twice.yaml", "key 'a' is written twice", "line")


@pytest.mark.parametrize(
    "text",
    [
        "name: !!python/object/apply:os.system ['touch touched']",
        "name: !!python/name:os.system",
        "name: !!python/object:imbalance_vlm.long_tail.LongTail {}",
    ],
)
def test_python_objects_are_refused_and_nothing_runs(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path / "evil.yaml", text), "evil.yaml", "not valid YAML")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("text", ["- 1\n- 2", "just words", "a: [1", "? [a, b]\n: 1", "\x00"])
def test_a_file_without_a_mapping_is_named(tmp_path: Path, text: str) -> None:
    refused(write(tmp_path / "odd.yaml", text), "odd.yaml")


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    refused(tmp_path / "binary.yaml", "binary.yaml", "not valid YAML")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "levels, got more, or a value that holds itself"),
        ("a: &a {<<: *a}", "unknown key"),
        ("a: " + "[" * 900 + "]" * 900, "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "must have at most 64 levels"),
        ("a0: &a0 [0]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100)), "must have at most 64 levels"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)), "values"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: " + "9" * 400, "at most 1000 bits"),
        ("seed: 0x" + "f" * 5000, "at most 1000 bits, got 20,000"),
        ("? 0x" + "f" * 5000 + "\n: 1", "at most 1000 bits, got 20,000"),
        (".".join("a" * 100) + ": 1", "unknown key"),
        ("name: !!timestamp x", "not valid YAML: a value cannot be read"),
        ("name: !!bool x", "not valid YAML: a value cannot be read"),
        ("name: !!int ''", "not valid YAML: a value cannot be read"),
        ('name: "a\\0b"', "NUL"),
        (f"name: {'x' * 256}", "too long"),
    ],
    ids=lambda value: value[:20],
)
def test_a_value_that_cannot_be_worked_with_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=re.escape(words)):
        plan(write(tmp_path / "odd.yaml", text))


def test_the_same_limits_hold_for_mappings_and_overrides() -> None:
    itself: dict[str, Any] = {"name": "a"}
    itself["training"] = itself
    with pytest.raises(InputError, match="holds itself"):
        load(itself)
    with pytest.raises(InputError, match="holds itself"):
        load({"name": "a"}, {"training": itself})
    with pytest.raises(InputError, match="1000 bits"):
        load({"name": "a"}, ["seed=" + "9" * 400])
    with pytest.raises(InputError, match="at most 64 parts"):
        load({"name": "a"}, [".".join("a" * 1000) + "=1"])
    with pytest.raises(InputError, match="a recipe must name a file or folder that can exist, got .* too long"):
        load("x" * 300)


def test_an_empty_file_is_an_empty_recipe(tmp_path: Path) -> None:
    assert load(write(tmp_path / "empty.yaml", "# nothing")).tree == {"name": "empty"}


# -- include ---------------------------------------------------------------------------------------------------------


def test_local_keys_win_over_included_ones(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "name: base\ntraining: {epochs: 5, batch_size: 8}\nhead: linear")
    path = write(tmp_path / "top.yaml", "include: [base.yaml]\ntraining: {epochs: 7}")
    loaded = load(path)
    assert loaded.tree == {"name": "top", "training": {"epochs": 7, "batch_size": 8}, "head": "linear"}
    assert loaded.origin("training.epochs").endswith("top.yaml")
    assert loaded.origin("training.batch_size").endswith("base.yaml")


def test_later_includes_win_and_includes_nest(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "bottom.yaml", "seed: 1\nhead: linear\ntuning: linear_probe")
    write(tmp_path / "deep" / "a.yaml", "include: bottom.yaml\nseed: 2")
    write(tmp_path / "b.yaml", "seed: 3")
    assert load(write(tmp_path / "top.yaml", "include: [deep/a.yaml, b.yaml]")).tree == {
        "name": "top",
        "seed": 3,
        "head": "linear",
        "tuning": "linear_probe",
    }


def test_a_file_may_be_included_twice(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "seed: 1")
    write(tmp_path / "a.yaml", "include: base.yaml")
    write(tmp_path / "b.yaml", "include: base.yaml")
    assert load(write(tmp_path / "top.yaml", "include: [a.yaml, b.yaml]")).tree["seed"] == 1


def test_a_cycle_is_refused_with_its_members(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "include: b.yaml")
    write(tmp_path / "b.yaml", "include: c.yaml")
    write(tmp_path / "c.yaml", "include: a.yaml")
    refused(tmp_path / "a.yaml", "include", "a.yaml -> b.yaml -> c.yaml -> a.yaml")
    refused(write(tmp_path / "self.yaml", "include: self.yaml"), "self.yaml -> self.yaml")


def test_a_missing_include_is_refused_with_the_file_that_asks(tmp_path: Path) -> None:
    refused(write(tmp_path / "top.yaml", "include: nowhere.yaml"), "top.yaml", "include", "nowhere.yaml")


@pytest.mark.parametrize("value", ["5", "{a: 1}", "[1]"])
def test_an_include_must_be_paths(tmp_path: Path, value: str) -> None:
    refused(write(tmp_path / "top.yaml", f"include: {value}"), "include", "list of paths")


def test_a_mapping_includes_nothing() -> None:
    with pytest.raises(RecipeError, match="only a recipe in a file"):
        load({"include": "a.yaml"})


# -- merging and overrides -------------------------------------------------------------------------------------------


def test_another_component_drops_the_settings_of_the_first() -> None:
    base = {"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}}
    assert merge(base, {"optimizer": {"name": "adamw"}}) == {"optimizer": {"name": "adamw"}}
    assert merge(base, {"optimizer": "adamw"}) == {"optimizer": {"name": "adamw"}}


def test_another_dataset_keeps_the_settings_that_all_datasets_share() -> None:
    base = {"data": {"name": "caltech101", "root": "DATA", "on_error": "skip", "shots": 16, "draw_seed": None}}
    protocol = {"shots": 16, "draw_seed": None}
    assert merge(base, {"data": {"name": "dtd"}}) == {"data": {"name": "dtd", "root": "DATA", **protocol}}
    assert merge(base, {"data": {"name": "icons_lt", "shots": 4}}) == {
        "data": {"name": "icons_lt", "shots": 4, "draw_seed": None}
    }
    assert merge(base, {"data": {"name": "table", "file": "photos.csv"}}) == {
        "data": {"name": "table", "file": "photos.csv", **protocol}
    }


def test_the_same_component_keeps_its_settings() -> None:
    base = {"optimizer": {"name": "sgd", "lr": 0.1}}
    for over in ("sgd", {"name": "sgd"}, {}):
        assert merge(base, {"optimizer": over}) == base
    assert merge(base, {"optimizer": {"lr": 1}}) == {"optimizer": {"name": "sgd", "lr": 1}}
    assert merge({"loss": "focal"}, {"loss": {"gamma": 1}}) == {"loss": {"name": "focal", "gamma": 1}}


def test_a_published_row_replaces_the_one_below_it_whole() -> None:
    """LIFT's groups are not those of LIFT with test-time ensembling."""
    below = {"paper": {"source": "a", "overall": 1.0, "few": 2.0}}
    over = {"paper": {"source": "b", "overall": 3.0}}
    assert merge(below, over) == over
    variants = [{"grid": {"variants": {"tte": paper}}} for paper in (below, over)]
    assert merge(*variants) == variants[1]


def test_a_setting_named_source_does_not_replace_its_component() -> None:
    shift = {"name": "prior_shift", "target": "uniform"}
    merged = merge({"balancing": {"post_hoc": shift}}, {"balancing": {"post_hoc": {"source": "uniform"}}})
    assert merged == {"balancing": {"post_hoc": shift | {"source": "uniform"}}}


def test_merging_leaves_its_inputs_alone() -> None:
    base = {"a": {"b": [1]}}
    merged = merge(base, {"a": {"c": 1}})
    merged["a"]["b"].append(2)
    assert base == {"a": {"b": [1]}}


def test_overrides_are_yaml_and_come_from_the_command_line() -> None:
    loaded = load(
        {"name": "r", "training": {"epochs": 5}, "head": {"name": "cosine", "scale": 3}},
        ["training.epochs=7", "training.optimizer={name: sgd, lr: 1e-2}", "head=linear", "paper=null", "a.b=[1, x]"],
    )
    assert loaded.tree == {
        "name": "r",
        "training": {"epochs": 7, "optimizer": {"name": "sgd", "lr": 0.01}},
        "head": {"name": "linear"},
        "paper": None,
        "a": {"b": [1, "x"]},
    }
    assert loaded.origin("training.optimizer.lr") == "command line"
    assert loaded.origin("training.epochs") == "command line"


def test_overrides_may_be_a_mapping_with_dotted_keys() -> None:
    assert load({"a": {"b": 1}}, {"a.b": 2, "c": 3}).tree == {"a": {"b": 2}, "c": 3}
    assert undotted({"a.b": 1, "a.c": 2}) == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize("text", ["epochs", "=5", "a..b=1", ".a=1", "a.=1", ""])
def test_a_malformed_override_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"key.path=value, got {text!r}")):
        load({}, [text])


def test_an_override_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(RecipeError, match="command line: a: not valid YAML"):
        load({}, ["a=[1"])


def test_overrides_do_not_change_the_recipe_of_the_caller() -> None:
    recipe = {"name": "r", "training": {"epochs": 5}}
    load(recipe, {"training.epochs": 7})
    assert recipe == {"name": "r", "training": {"epochs": 5}}


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_packaged_recipe_is_found_by_each_spelling_of_its_name() -> None:
    name = list_recipes()[0]
    file = find_recipe(name)
    assert yaml.safe_load(file.read_text())
    assert find_recipe(f"recipes/{name}.yaml") == find_recipe(f"{name}.yaml") == file


def test_bases_are_not_listed() -> None:
    assert not [name for name in list_recipes() if "_" in {part[0] for part in name.split("/")}]


def test_an_unknown_recipe_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"neither.*Did you mean 'icons_lt/zero_shot'.*ls recipes"):
        load("icons_lt/zeroshot")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be a YAML file"):
        load(tmp_path)


def test_overrides_are_one_change_whatever_their_order() -> None:
    base = {"name": "r", "training": {"optimizer": {"name": "sgd", "lr": 0.1}}}
    first = load(base, ["training.optimizer.lr=0.01", "training.optimizer=adamw"]).tree
    second = load(base, ["training.optimizer=adamw", "training.optimizer.lr=0.01"]).tree
    assert first == second == {"name": "r", "training": {"optimizer": {"name": "adamw", "lr": 0.01}}}


def test_one_override_may_be_a_string() -> None:
    assert load({"name": "r"}, "seed=3").tree["seed"] == 3


def test_a_packaged_recipe_can_be_included_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("include: [icons_lt/linear_probe]\nseed: 3\n")
    tree = load(path).tree
    assert (tree["name"], tree["seed"], tree["head"]) == ("mine", 3, "linear")


def test_a_bare_method_keeps_the_settings_and_a_named_family_does_not() -> None:
    below = {"tuning": {"name": "prompt", "method": "coop", "suffix": ""}}
    assert merge(below, {"tuning": {"method": "kgcoop"}})["tuning"] == {
        "name": "prompt",
        "method": "kgcoop",
        "suffix": "",
    }
    named = {"name": "prompt", "method": "vpt"}
    assert merge(below, {"tuning": named})["tuning"] == named
