"""Which folder a run has, and which runs share a row: what their numbers depend on, and nothing else.

`defaults.json` beside this file holds the default of every setting that takes part in the identity. Settings at their
defaults are left out of the hashes, so that a changed default needs a new `NUMERICS_VERSION`. Once that is raised,
write the file again:

    python tests/runs/test_identity.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import imbalance_vlm
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import ComputeOnly
from imbalance_vlm.components.settings import Setting, settings_of
from imbalance_vlm.recipe.schema import RECIPE, Component, Components, Leaf, Section, shared_settings
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.runs import identity
from imbalance_vlm.runs.identity import NUMERICS_VERSION, config_hash, core, recipe_hash, run_folder
from imbalance_vlm.runs.resources import Resources
from tests.runs.running import Recipe, run

DEFAULTS = Path(__file__).with_name("defaults.json")


def complete(recipe: Recipe, changes: Recipe | None = None) -> Recipe:
    (resolved,) = plan(recipe, changes).recipes
    return resolved


def hashes(recipe: Recipe) -> tuple[str, str]:
    """(recipe_hash, config_hash), with files read anew."""
    return recipe_hash(recipe, Resources()), config_hash(recipe)


# -- the recipe ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "changes",
    [
        {"training.epochs": 4},
        {"head": "cosine"},
        {"balancing.loss": {"name": "logit_adjustment", "tau": 0.5}},
        {"encoder.cache": False},
        {"encoder.decoder": "torchvision"},
        {"encoder.resized": 64},
        {"evaluation.groups.many": 20},
        {"evaluation.geometry": True},
        {"data.templates": "simple"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_numbers_changes_both_hashes(recipe: Recipe, changes: Recipe) -> None:
    before, after = hashes(complete(recipe)), hashes(complete(recipe, changes))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_the_seed_changes_the_run_and_not_the_configuration(recipe: Recipe) -> None:
    before, after = hashes(complete(recipe)), hashes(complete(recipe, {"seed": 1}))
    assert before[0] != after[0]
    assert before[1] == after[1]


@pytest.mark.parametrize("change", [{"name": "other"}, {"description": "words"}, {"paper": {"overall": 50.0}}])
def test_labels_change_no_hash(recipe: Recipe, change: Recipe) -> None:
    assert hashes(complete(recipe, change)) == hashes(complete(recipe))


def compute_only() -> dict[str, Setting]:
    """Every setting that is marked as `ComputeOnly`, by its place in `settings_by_place`."""
    return {place: setting for place, setting in settings_by_place().items() if setting.marked(ComputeOnly)}


def test_every_setting_that_only_decides_how_numbers_are_computed_is_known() -> None:
    prompts = {f"prompts {name}: {key}" for name in catalogue.PROMPTS.names() for key in ("chunk", "memory_gb")}
    sections = {"training: checkpoint_seconds", "training: shard"}
    assert set(compute_only()) - prompts == sections
    assert {place.partition(": ")[2] for place in set(compute_only()) & prompts} == {"chunk", "memory_gb"}


@pytest.mark.parametrize(
    ("changes", "computed_otherwise"),
    [
        ({}, {"training.checkpoint_seconds": 1.0}),
        ({"tuning": "full", "head": "cosine"}, {"training.shard": True}),
        ({"tuning": {"name": "prompt", "method": "coop"}, "head": "text"}, {"tuning.chunk": 3, "tuning.memory_gb": 1}),
    ],
    ids=["checkpoints", "shards", "chunks"],
)
def test_how_numbers_are_computed_changes_no_hash(recipe: Recipe, changes: Recipe, computed_otherwise: Recipe) -> None:
    assert hashes(complete(recipe, changes | computed_otherwise)) == hashes(complete(recipe, changes))


def test_an_explicit_default_is_a_key_left_out(recipe: Recipe) -> None:
    assert hashes(complete(complete(recipe))) == hashes(complete(recipe))
    explicit = {"balancing.loss.label_smoothing": 0, "data.shots": None, "head.normalise": True}
    assert hashes(complete(recipe, explicit)) == hashes(complete(recipe))


def test_an_explicit_default_of_a_nested_dataset_is_a_key_left_out(recipe: Recipe, images: Path) -> None:
    zero_shot = {"tuning": "zero_shot", "head": "text"}
    short = {"evaluation.transfer": {"datasets": [{"name": "folder", "root": str(images)}]}}
    long = complete(recipe, zero_shot | short)
    assert "flips" in long["evaluation"]["transfer"]["datasets"][0]
    assert core(long)["evaluation"]["transfer"] == short["evaluation.transfer"]
    changed = {"evaluation.transfer": {"datasets": [{"name": "folder", "root": str(images), "flips": False}]}}
    assert config_hash(complete(recipe, zero_shot | changed)) != config_hash(long)


def test_a_setting_that_is_added_later_changes_no_hash(recipe: Recipe) -> None:
    """As long as it is not set: a recipe that was completed before has no such key."""
    later = complete(recipe)
    earlier = json.loads(json.dumps(later))
    del earlier["data"]["tau"], earlier["head"]["normalise"], earlier["balancing"]["loss"]["label_smoothing"]
    assert core(earlier) == core(later)
    shorter = {key: value for key, value in later["data"].items() if key != "tau"}
    assert Resources().dataset_identity(shorter) == Resources().dataset_identity(later["data"])


# -- files -----------------------------------------------------------------------------------------------------------
def test_new_weights_and_changed_images_change_the_run(recipe: Recipe, tmp_path: Path) -> None:
    weights = Path(shutil.copytree(str(recipe["encoder"]["name"]).removeprefix("local-dir:"), tmp_path / "encoder"))
    root = Path(shutil.copytree(recipe["data"]["root"], tmp_path / "data"))
    resolved = complete(recipe, {"encoder.name": f"local-dir:{weights}", "data.root": str(root)})
    first = hashes(resolved)
    file = weights / "open_clip_model.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(file).items()}, file)
    second = hashes(resolved)
    image = next((root / "test").rglob("*.png"))
    image.write_bytes(image.read_bytes() + b"more")
    third = hashes(resolved)
    assert len({first[0], second[0], third[0]}) == 3
    assert first[1] == second[1] == third[1]


def test_the_draw_seed_of_a_run_is_its_seed(recipe: Recipe) -> None:
    """With `draw_seed: null` another seed draws other images, and is a run of the same configuration."""
    first, second = (complete(recipe, {"data.draw_seed": None, "seed": seed}) for seed in (0, 1))
    assert config_hash(first) == config_hash(second)
    assert recipe_hash(first, Resources()) != recipe_hash(complete(recipe), Resources())


# -- versions, processes, options ------------------------------------------------------------------------------------
def test_a_patch_release_changes_no_hash(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(complete(recipe))
    monkeypatch.setattr(imbalance_vlm, "__version__", "99.0.1")
    monkeypatch.setattr("imbalance_vlm.version.__version__", "99.0.1")
    assert hashes(complete(recipe)) == before


def test_a_new_numerics_version_changes_both_hashes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(complete(recipe))
    monkeypatch.setattr(identity, "NUMERICS_VERSION", NUMERICS_VERSION + 1)
    after = hashes(complete(recipe))
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_processes_agree_whatever_order_they_hash_strings_in(recipe: Recipe) -> None:
    program = (
        "import json, sys\nfrom imbalance_vlm.recipe.study import plan\n"
        "from imbalance_vlm.runs.identity import config_hash, recipe_hash\n"
        "from imbalance_vlm.runs.resources import Resources\n"
        "recipe = plan(json.load(sys.stdin)).recipes[0]\n"
        "print(recipe_hash(recipe, Resources()), config_hash(recipe))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1]), "PYTHONHASHSEED": "1"}
    completed = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(recipe),
        text=True,
        capture_output=True,
        check=True,
        env=environment,
    )
    assert tuple(completed.stdout.split()) == hashes(complete(recipe))


def test_folder_of_a_run_does_not_depend_on_how_it_is_started(recipe: Recipe) -> None:
    """`runs` is the folder above, and `device` and `force` are no part of a recipe; for `jobs` see test_study.py."""
    first, second = (
        run(recipe, "training.epochs=1", runs=runs, device=device, force=force)
        for runs, device, force in (("a", "auto", False), ("b/c", "cpu", True))
    )
    assert first.path.relative_to("a") == second.path.relative_to("b/c")
    assert first.record["config"] == second.record["config"]


def test_folder_is_named_after_recipe_seed_and_hash(recipe: Recipe) -> None:
    resolved = complete(recipe, {"name": "a/b: c?", "seed": 3})
    folder = run_folder(Path("runs"), resolved, Resources())
    assert folder == Path("runs") / "a" / "b- c-" / f"seed3-{recipe_hash(resolved, Resources())[:16]}"


# -- defaults --------------------------------------------------------------------------------------------------------
def settings_by_place() -> dict[str, Setting]:
    """Every setting that a recipe can have, by "kind name: setting" or "section: setting"."""
    settings = {}
    for kind, registry in catalogue.REGISTRIES.items():
        for entry in registry:
            of_entry = entry.settings() if entry.methods is None else settings_of(entry.load()) if entry.build else {}
            settings |= {f"{kind} {entry.name}: {name}": setting for name, setting in of_entry.items()}
    for path, node in sections("", RECIPE):
        target = node.settings if isinstance(node, Section) else node.shared
        settings |= {f"{path}: {name}": setting for name, setting in shared_settings(target).items()}
    return settings


def sections(path: str, node: Section) -> list[tuple[str, Section | Component | Components]]:
    nodes: list[tuple[str, Section | Component | Components]] = [(path, node)]
    for key, child in node.children.items():
        below = f"{path}.{key}".strip(".")
        if isinstance(child, Section):
            nodes += sections(below, child)
        elif not isinstance(child, Leaf):
            nodes.append((below, child))
    return nodes


def current_defaults() -> Recipe:
    """The default of every setting that takes part in the identity; required ones have none."""
    defaults = {
        place: setting.default
        for place, setting in settings_by_place().items()
        if not setting.required and not setting.marked(ComputeOnly)
    }
    return json.loads(json.dumps(defaults, default=str, sort_keys=True))  # type: ignore[no-any-return]


def write_defaults() -> None:
    """Pin the defaults of this version of the numbers."""
    content = {"numerics_version": NUMERICS_VERSION, "defaults": current_defaults()}
    DEFAULTS.write_text(json.dumps(content, indent=1) + "\n")


def changed_defaults(pinned: Recipe, current: Recipe) -> list[str]:
    return [
        f"{place}: {value!r} is now {current[place]!r}"
        for place, value in pinned.items()
        if place in current and current[place] != value
    ]


def test_no_default_changes_without_a_new_numerics_version() -> None:
    pinned = json.loads(DEFAULTS.read_text())
    assert pinned["numerics_version"] == NUMERICS_VERSION, (
        "NUMERICS_VERSION has changed: write the defaults again with `python tests/runs/test_identity.py`"
    )
    changed = changed_defaults(pinned["defaults"], current_defaults())
    assert not changed, (
        "finished runs at the earlier defaults would be taken for runs at the new ones. Raise NUMERICS_VERSION in "
        "imbalance_vlm/runs/identity.py, then write the defaults again with `python tests/runs/test_identity.py`:\n"
        + "\n".join(changed)
    )


def test_every_default_is_pinned() -> None:
    pinned, current = json.loads(DEFAULTS.read_text())["defaults"], current_defaults()
    assert sorted(pinned) == sorted(current), (
        "settings were added or removed, which changes no finished run: write the defaults again with "
        "`python tests/runs/test_identity.py`"
    )


def test_a_changed_default_is_found() -> None:
    pinned = current_defaults()
    assert not changed_defaults(pinned, pinned)
    current = pinned | {"losses focal: gamma": 3.0, "losses new: setting": 1}
    assert changed_defaults(pinned, current) == ["losses focal: gamma: 2.0 is now 3.0"]


if __name__ == "__main__":
    write_defaults()
