"""The package on docs/extending.md: its files are taken from the page, installed and run."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
FILES = {title: text for _, title, text in BLOCKS if title}
SNIPPETS = [text for language, title, text in BLOCKS if language == "python" and not title]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, and the package installed into the folder `site` beside them."""
    folder = tmp_path_factory.mktemp("my-methods")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    install = "pip install --quiet --no-index --no-deps --no-build-isolation --target site .".split()
    subprocess.run([sys.executable, "-m", *install], cwd=folder, check=True)
    return folder


def run(folder: Path, *arguments: str) -> str:
    """The output of a Python command with the package installed."""
    path = os.pathsep.join([str(folder / "site"), str(ROOT)])
    process = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.parametrize("code", SNIPPETS, ids=lambda code: re.findall(r"class (\w+)", code)[-1])
def test_snippets_run(code: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "snippet.py"), run_name="snippet")


def test_components_are_listed_shown_and_valid(package: Path) -> None:
    assert "gce" in run(package, "-m", "imbalance_vlm", "ls", "losses")
    shown = run(package, "-m", "imbalance_vlm", "show", "gce")
    assert "Zhang and Sabuncu" in shown
    assert "q: a number > 0 and <= 1" in shown
    assert "valid" in run(package, "-m", "imbalance_vlm", "validate", "recipe.yaml")


def test_every_component_loads_and_its_settings_are_documented(package: Path) -> None:
    modules = {name.removesuffix(".py").replace("/", ".") for name in FILES if name.endswith(".py")}
    code = """
from imbalance_vlm.components import catalogue
from imbalance_vlm.recipe.reference import variants

catalogue.load_plugins()
for registry in catalogue.REGISTRIES.values():
    for entry in registry:
        if str(entry.build).startswith("my_methods."):
            keys = [key for _, _, keys in variants(entry) for key in keys]
            assert all(key.text for key in keys), keys
            print(entry.build.partition(":")[0])
"""
    assert set(run(package, "-c", code).split()) == modules - {"my_methods.__init__", "test_losses"}


def test_the_recipe_runs_and_predicts(package: Path, images: Path, tiny_clip: str) -> None:
    overrides = [
        *("data.name=folder", f"data.root={images}", f"encoder.name={tiny_clip}", "encoder.pretrained=null"),
        "training.epochs=2",
    ]
    run(package, "-m", "imbalance_vlm", "run", "recipe.yaml", *overrides, "--runs", "runs")
    (result,) = (package / "runs").rglob("result.json")
    predicted = run(package, "-m", "imbalance_vlm", "predict", str(result.parent), str(images / "test" / "red_apple"))
    assert predicted.count("red_apple") >= 5


def test_the_test_of_the_page_passes(package: Path) -> None:
    run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_losses.py")
