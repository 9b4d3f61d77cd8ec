"""Every recipe that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from imbalance_vlm import assembly, run
from imbalance_vlm.data.dataset import ArrayImages, Dataset, Split
from imbalance_vlm.encoders.pretraining import MINI_CLIP
from imbalance_vlm.recipe.load import load, recipes_folder
from imbalance_vlm.recipe.study import plan

FILES = sorted(path for path in recipes_folder().rglob("*.yaml") if "_base" not in path.parts)


def ids(path: Path) -> str:
    return path.relative_to(recipes_folder()).with_suffix("").as_posix()


def small_icons(**_: Any) -> Dataset:
    """Noise in the shape of Icons-LT: a few classes of each group."""
    counts = [110, 40, 20, 6, 3]
    rng = np.random.default_rng(0)

    def split(labels: Any) -> Split:
        return Split(ArrayImages(rng.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)), labels)

    labels = np.arange(len(counts))
    splits = {"train": split(labels.repeat(counts)), "val": split(labels), "test": split(labels.repeat(2))}
    return Dataset("icons_lt", tuple(f"thing {label}" for label in labels), splits, flips=False)


def _epochs_kept(path: Path) -> int:
    """The longest first pass that a gradient transform of the recipe learns from."""
    transforms = [one["balancing"]["gradient"] for one in plan(path).recipes]
    return max((transform.get("keep", 0) for transform in transforms if transform), default=0)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_is_valid_and_named_after_its_place(path: Path) -> None:
    wanted = plan(path)
    assert wanted.name == ids(path)
    assert yaml.safe_load(path.read_text()).get("name", ids(path)) == ids(path)
    assert all(one["name"] == ids(path) or one["name"].startswith(f"{ids(path)}/") for one in wanted.recipes)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_opens_with_its_command(path: Path) -> None:
    commands = f"imbalance-vlm run {ids(path)}", f"python tools/run.py recipes/{ids(path)}.yaml"
    assert any(command in path.read_text().splitlines()[0] for command in commands)


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_runs_a_few_steps(path: Path, tiny_clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small set of noise; with the tiny model in place of mini-clip while that is not there."""
    pytest.importorskip("imbalance_vlm.data.icons_lt")
    if load(path).tree["data"]["name"] != "icons_lt":
        pytest.skip("needs files of the user's own")
    monkeypatch.setattr("imbalance_vlm.data.icons_lt.IconsLTReader.read", lambda self: small_icons())
    assembly.dataset.cache_clear()
    overrides: dict[str, Any] = {"training.epochs": 1, "training.batch_size": 256}
    if kept := _epochs_kept(path):  # a first pass keeps so many, of which its subspace has fewer directions
        overrides |= {"training.epochs": kept, "training.batch_size": 4}
    if load(path).tree.get("grid", {}).get("seeds"):
        overrides |= {"grid.seeds": [0]}
    if not any(MINI_CLIP.glob("*/open_clip_config.json")):
        overrides |= {"encoder": {"name": tiny_clip}}
    try:
        result = run(path, overrides, device="cpu")
    finally:
        assembly.dataset.cache_clear()
    assert (result.path / ("table.csv" if load(path).tree.get("grid") else "result.json")).is_file()
