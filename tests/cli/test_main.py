"""The command line: what it prints, how fast, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import imbalance_vlm
from imbalance_vlm.cli import main
from imbalance_vlm.components import catalogue
from imbalance_vlm.recipe.load import list_recipes

Capture = pytest.CaptureFixture[str]


def command(*arguments: str, prefix: tuple[str, ...] = ("-m", "imbalance_vlm")) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    return subprocess.run([sys.executable, *prefix, *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture
def recipe_file(recipe: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe | {"training": {"epochs": 1}}))
    return str(path)


@pytest.fixture
def finished(recipe_file: str, capsys: Capture) -> None:
    """Two finished runs under runs/."""
    assert main(["run", recipe_file]) == 0
    assert main(["run", recipe_file, "seed=1", "head=cosine"]) == 0
    capsys.readouterr()


# -- fast commands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["ls", "losses"], ["run", "--help"], ["--version"]])
def test_help_and_ls_answer_in_under_a_second_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom imbalance_vlm.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "slow = {'torch', 'open_clip', 'timm', 'pandas', 'sklearn', 'torchvision', 'PIL', 'scipy'}\n"
        "heavy = slow & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        begun = time.monotonic()
        done = command(*arguments, prefix=("-c", code))
        seconds.append(time.monotonic() - begun)
        assert done.returncode == 0, done.stderr
        if seconds[-1] < 1:
            return
    pytest.fail(f"took {seconds} s")


def test_ls_lists_everything_registered(capsys: Capture) -> None:
    assert main(["ls"]) == 0
    shown = capsys.readouterr().out
    for kind, registry in catalogue.REGISTRIES.items():
        assert f"{kind}:" in shown
        assert all(f"  {entry.name} " in shown and entry.summary in shown for entry in registry)
    assert all(f"  {name} " in shown for name in list_recipes())


def test_overrides_may_stand_behind_options(recipe_file: str, capsys: Capture) -> None:
    assert main(["run", recipe_file, "training.epochs=1", "--runs", "out", "seed=5"]) == 0
    (record,) = [json.loads(path.read_text()) for path in Path("out").rglob("result.json")]
    assert record["seed"] == 5
    with pytest.raises(SystemExit):
        main(["run", recipe_file, "--runs", "out", "--unknown"])


def test_show_prints_a_component_with_its_settings(capsys: Capture) -> None:
    assert main(["show", "logit_adjustment"]) == 0
    shown = capsys.readouterr().out
    assert "logit_adjustment (losses)" in shown
    assert "Menon" in shown
    assert "tau: a number >= 0 (default 1.0)" in shown


@pytest.mark.parametrize("name", catalogue.PROMPTS.names())
def test_show_says_what_each_setting_of_a_prompt_method_means(name: str, capsys: Capture) -> None:
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    for setting in catalogue.PROMPTS.get(name).settings():
        assert re.search(rf"^    (\w+, )*{setting}(, \w+)*: ", shown, re.MULTILINE), setting


def test_show_prints_a_recipe_that_runs_as_it_is(recipe_file: str, capsys: Capture) -> None:
    assert main(["show", recipe_file, "training.epochs=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["epochs"] == 7
    assert shown["balancing"]["loss"]["label_smoothing"] == 0
    Path("shown.yaml").write_text(yaml.safe_dump(shown))
    assert main(["validate", "shown.yaml"]) == 0


def test_validate_says_which_recipes_are_right(recipe_file: str, capsys: Capture) -> None:
    Path("wrong.yaml").write_text("nam: x")
    assert main(["validate", recipe_file, "wrong.yaml"]) == 2
    said = capsys.readouterr()
    assert f"{recipe_file}: valid" in said.out
    assert "wrong.yaml: nam: unknown key" in said.err
    assert "error: 1 of 2 recipes are not valid" in said.err


# -- run and table ---------------------------------------------------------------------------------------------------


def test_run_prints_one_table_on_standard_output(recipe_file: str, capsys: Capture) -> None:
    assert main(["run", recipe_file, "training.epochs=2", "--runs", "out", "--device", "cpu"]) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("|") for line in lines)
    assert "| balanced_softmax |" in lines[2]
    assert "results: out/tiny/seed0-" in said.err


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("style", "begins"),
    [("markdown", "| recipe"), ("md", "| recipe"), ("latex", r"\begin{tab"), ("tex", r"\begin"), ("csv", "recipe,")],
)
def test_table_in_every_style(style: str, begins: str, capsys: Capture) -> None:
    assert main(["table", "--format", style, "--columns", "recipe,head,overall,few", "--sort", "overall"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(begins)
    assert "cosine" in shown
    assert "linear" in shown


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("suffix", ["md", "tex", "csv"])
def test_table_to_a_file(suffix: str, capsys: Capture) -> None:
    assert main(["table", "runs", "--out", f"table.{suffix}"]) == 0
    assert capsys.readouterr().out == ""
    assert "balanced" in Path(f"table.{suffix}").read_text()


@pytest.mark.usefixtures("finished")
def test_cache_path_ls_and_prune(capsys: Capture, tmp_path: Path) -> None:
    assert main(["cache", "path"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "cache" / "features")
    assert main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert "colours train" in shown
    assert "2 entries" in shown
    assert main(["cache", "prune", "--older-than-days", "1"]) == 0
    assert "removed 0 entries" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0
    assert "removed 2 entries" in capsys.readouterr().out


# -- bad input -------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], list[str]]] = {
    "unknown key": (["run", "RECIPE", "trainning.epochs=1"], ["command line: trainning: unknown key", "'training'"]),
    "unknown name": (["run", "RECIPE", "balancing.loss=focall"], ["unknown loss 'focall'", "Did you mean 'focal'?"]),
    "wrong type": (["run", "RECIPE", "training.epochs=ten"], ["training.epochs: must be a whole number >= 1"]),
    "two mistakes": (["run", "RECIPE", "hed=x", "seed=-1"], ["2 problems", "hed: unknown key", "seed: must be"]),
    "no override": (["run", "RECIPE", "epochs"], ["key.path=value"]),
    "unknown recipe": (["run", "quikstart"], ["neither"]),
    "no folder": (["run", "RECIPE", "data.root=nowhere"], ["no such folder"]),
    "no images": (["run", "RECIPE", "data.root=."], ["must hold class folders with images"]),
    "unknown encoder": (["run", "RECIPE", "encoder=ViT-B-61"], ["unknown encoder 'ViT-B-61'"]),
    "unknown device": (["run", "RECIPE", "--device", "gpu"], ["`device` must be auto"]),
    "cycle": (["run", "cycle.yaml"], ["includes itself: cycle.yaml -> cycle.yaml"]),
    "missing include": (["run", "missing.yaml"], ["no file 'nowhere.yaml'"]),
    "not YAML": (["run", "broken.yaml"], ["broken.yaml: not valid YAML"]),
    "python object": (["run", "evil.yaml"], ["evil.yaml: not valid YAML"]),
    "unknown kind": (["ls", "loses"], ["unknown kind 'loses'", "Did you mean 'losses'?"]),
    "unknown component": (["show", "focall"], ["no component", "Did you mean 'focal'?"]),
    "parquet to the screen": (["table", "one", "--format", "parquet"], ["write it with --out FILE.parquet"]),
    "no results": (["table"], ["no such run or folder: runs"]),
    "unknown column": (["table", "one", "--columns", "overal"], ["unknown table column 'overal'", "'overall'"]),
    "unknown style": (["table", "one", "--format", "html"], ["`format` must be"]),
    "unknown suffix": (["table", "one", "--out", "t.html"], ["`format` must be"]),
}


@pytest.fixture
def bad_files() -> None:
    Path("cycle.yaml").write_text("include: cycle.yaml")
    Path("missing.yaml").write_text("include: nowhere.yaml")
    Path("broken.yaml").write_text("a: [1")
    Path("evil.yaml").write_text("a: !!python/object/apply:os.getcwd []")


@pytest.mark.usefixtures("bad_files")
@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_error_and_exit_code_2(what: str, recipe_file: str, capsys: Capture) -> None:
    arguments, words = BAD[what]
    arguments = [recipe_file if argument == "RECIPE" else argument for argument in arguments]
    if "one" in arguments:
        assert main(["run", recipe_file, "--runs", "one"]) == 0
        capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err
    assert all(word in said.err for word in words), said.err
    assert not list(Path("runs").rglob("result.json"))


def test_bad_input_in_a_process_of_its_own(recipe_file: str) -> None:
    done = command("run", recipe_file, "heads=linear", "training.epochs=0")
    assert done.returncode == 2
    assert "error: 2 problems in the recipe" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [[], ["rum"], ["cache", "burn"], ["cache", "prune", "--max-gb", "lots"]])
def test_wrong_arguments_are_exit_code_2_too(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(recipe_file: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("imbalance_vlm.runner.run", interrupted)
    assert main(["run", recipe_file]) == 130
    assert "run the same command again" in capsys.readouterr().err
