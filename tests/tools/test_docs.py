"""The generated parts of README.md and docs/, and what the pages claim."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml

from imbalance_vlm.encoders.pretraining import MINI_CLIP
from imbalance_vlm.recipe.json_schema import json_schema
from imbalance_vlm.recipe.study import plan

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_generated_parts_are_fresh() -> None:
    process = subprocess.run([sys.executable, ROOT / "tools" / "docs.py", "--check"], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").stat().st_size <= 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_relative_links_lead_to_files(page: Path) -> None:
    """On GitHub; the strict build of the site checks links and anchors too."""
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    relative = [target for target in targets if not target.startswith(("http", "mailto"))]
    assert [target for target in relative if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("tag", sorted(path.name for path in MINI_CLIP.iterdir() if path.is_dir()))
def test_plain_open_clip_loads_mini_clip_as_shown(tag: str) -> None:
    page = (ROOT / "docs" / "icons_lt.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict[str, object] = {}
    exec(code.replace("icons-large", tag), scope)
    model, tokenizer = scope["model"], scope["tokenizer"]
    assert isinstance(model, open_clip.CLIP)
    with torch.inference_mode():
        text = model.encode_text(tokenizer(["arrow left", "a photo of a cat"]))  # type: ignore[operator]
        image = model.encode_image(torch.zeros(1, 3, 32, 32))
    assert text.shape == (2, image.shape[1])


@pytest.mark.parametrize("study", sorted((ROOT / "recipes" / "_results").rglob("*.json")), ids=lambda path: path.stem)
def test_kept_results_name_no_folder_of_the_machine_they_ran_on(study: Path) -> None:
    content = json.loads(study.read_text(encoding="utf-8"))
    assert not [run for run in content["runs"] if str(run["identity"]["pretrained"]).startswith(("/", "~"))]


def test_recipes_shown_on_pages_are_valid() -> None:
    blocks = {
        page.stem: re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) for page in PAGES
    }
    recipe = next(block for block in blocks["README"] if "name: my_probe" in block)
    assert plan(yaml.safe_load(recipe)).name == "my_probe"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", *RECIPES], ids=lambda path: path.stem)
def test_keys_of_recipes_that_texts_mention_exist(page: Path) -> None:
    keys = json_schema()["$defs"]["overrides"]["properties"]
    sections = "data|encoder|tuning|head|balancing|training|evaluation"
    mentioned = re.findall(rf"(?<![\w./])((?:{sections})(?:\.[a-z_0-9]+)+)(?![\w(/])", page.read_text(encoding="utf-8"))
    files = (".py", ".yaml", ".json", ".jsonl", ".csv", ".md")
    assert [key for key in mentioned if key not in keys and not key.endswith(files)] == []
