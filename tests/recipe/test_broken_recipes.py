"""Broken recipe files and wrong settings, through the command line: one error that names the file and the key."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.broken_inputs import Workspace
from tests.data.miniatures import write_image

MILLIONS_OF_VALUES = (
    "a: &a [x, x, x]\n"
    + "".join(f"{name}: &{name} [{', '.join([f'*{previous}'] * 9)}]\n" for previous, name in pairwise("abcdefghij"))
    + "data: *j"
)
"""Ten lines whose aliases stand for more values than fit in memory."""

NOT_YAML = "broken.yaml: not valid YAML"
BROKEN_FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "an open brace": ("data: {name: folder", (NOT_YAML, "line 1")),
    "a tab": ("data:\n\tname: folder", (NOT_YAML, "line 2")),
    "a list as a key": ("[a, b]: 1", (NOT_YAML, "a key must be a word or a number")),
    "a list": ("- name: x", ("must be a mapping of keys, got a list",)),
    "nothing": ("", ("data: missing", "encoder: missing", "tuning: missing")),
    "a name that leads out": ("name: ../../x\ndata: icons_lt", ("name: must be words", "'../../x'")),
    "millions of values": (MILLIONS_OF_VALUES, ("must hold at most 100,000 values", "aliases")),
}


@pytest.mark.parametrize("content", BROKEN_FILES)
def test_a_broken_recipe_file_is_named(content: str, workspace: Workspace) -> None:
    text, words = BROKEN_FILES[content]
    workspace.assert_refused(workspace.run_text(text), *words)


def test_recipes_that_include_each_other_are_refused(workspace: Workspace) -> None:
    workspace.run_text("include: a.yaml", "b.yaml")
    command = workspace.run_text("include: b.yaml", "a.yaml")
    workspace.assert_refused(command, "includes itself: a.yaml -> b.yaml -> a.yaml")


def test_a_binary_recipe_is_refused(workspace: Workspace) -> None:
    file = workspace.folder / "broken.yaml"
    file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    workspace.assert_refused(["run", str(file)], NOT_YAML)


def test_a_folder_in_place_of_a_recipe_is_refused(workspace: Workspace) -> None:
    words = "must be a YAML file or the name of a packaged recipe"
    workspace.assert_refused(["run", str(workspace.data)], words)


def test_a_number_that_yaml_1_1_reads_as_a_word_works(workspace: Workspace) -> None:
    command = workspace.run()
    file = Path(command[1])
    file.write_text(file.read_text().replace("training:", "training:\n  optimizer: {name: sgd, lr: 1e-3}"))
    workspace.assert_works(command)


# -- settings --------------------------------------------------------------------------------------------------------
WRONG_SETTINGS: dict[str, tuple[str, ...]] = {
    "training.batch_size=0": ("training.batch_size: must be a whole number >= 1, got 0",),
    "training.optimizer.lr=.inf": ("training.optimizer.lr: must be a number", "got inf"),
    'training.optimizer.lr="1e-3"': ("training.optimizer.lr: must be a number", "got '1e-3'", "quotes"),
    "training.optimizer={name: sgd, lr: [1]}": ("training.optimizer.lr: must be a number", "got [1]"),
    "head={scale: 3}": ("head.scale: unknown key",),
    "head=[linear]": ("head: must name one head, or be a mapping with `name`",),
    "balancing.loss={name: logit_adjustment, tau: -1}": ("balancing.loss.tau: must be a number >= 0, got -1",),
    "data.tau=1.5": ("data.tau: must be a number > 0 and <= 1, got 1.5",),
    "data.tau=0.5": ("`tau` 0.5 thins a few-shot dataset and needs `shots`",),
    "data.shots=0": ("data.shots: must be a whole number >= 1 or null, got 0",),
    "data.test_fraction=1.0": ("data.test_fraction: must be a number >= 0 and < 1, got 1.0",),
    "data.test_fraction=0": ("must have images for 'test', but a test_fraction of 0", "set data.test_fraction="),
    "data.templates=[a photo]": ("sentences with one {} for the class name, got 'a photo'",),
    "data.tail_factor=0.5": ("data.tail_factor: must be a number >= 1, got 0.5",),
    "evaluation.groups={many: 5, few: 50}": ("many", "few", "5", "50"),
    "seed=[1": ("seed: not valid YAML: '[1'",),
}


@pytest.mark.parametrize("override", WRONG_SETTINGS)
def test_a_wrong_setting_is_named_with_what_is_allowed(override: str, workspace: Workspace) -> None:
    workspace.assert_refused(workspace.run(override), *WRONG_SETTINGS[override])


def test_base_classes_of_three_are_refused(workspace: Workspace) -> None:
    command = workspace.run("data.classes=base", tuning="zero_shot", head="text")
    workspace.assert_refused(command, "at least 2 classes each")


def test_a_class_name_longer_than_the_text_tower_reads_is_refused(workspace: Workspace) -> None:
    for number in range(2):
        write_image(workspace.images / " ".join("abcdefghijklmnopqrstuvwxyz") / f"{number}.png")
    tuning = {"name": "prompt", "method": "coop", "n_ctx": 4, "views": 0}
    workspace.assert_refused(workspace.run(tuning=tuning, head="text"), "context", "16")


@pytest.mark.parametrize("override", ["data.shots=100", "training.batch_size=100000"])
def test_a_setting_larger_than_the_data_works(override: str, workspace: Workspace) -> None:
    workspace.assert_works(workspace.run(override))
