"""The generated parts of the README are what the files say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from imbalance_vlm.encoders.pretraining import MINI_CLIP

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_parts_are_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"stale: run python tools/readme.py {done.stderr}"


@pytest.mark.parametrize("tag", sorted(path.name for path in MINI_CLIP.iterdir() if path.is_dir()))
def test_plain_open_clip_loads_mini_clip_as_shown(tag: str) -> None:
    shown = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "local-dir" in block)
    scope: dict[str, object] = {}
    exec(shown.replace("icons-large", tag), scope)
    model, tokenizer = scope["model"], scope["tokenizer"]
    assert isinstance(model, open_clip.CLIP)
    with torch.inference_mode():
        text = model.encode_text(tokenizer(["arrow left", "a photo of a cat"]))  # type: ignore[operator]
        image = model.encode_image(torch.zeros(1, 3, 32, 32))
    assert text.shape == (2, image.shape[1])


@pytest.mark.parametrize("kept", sorted((ROOT / "recipes" / "_results").rglob("*.json")), ids=lambda path: path.stem)
def test_a_kept_result_names_no_folder_of_the_machine_it_ran_on(kept: Path) -> None:
    content = json.loads(kept.read_text(encoding="utf-8"))
    assert not [run for run in content["runs"] if str(run["identity"]["pretrained"]).startswith(("/", "~"))]
