"""Images that may be wrongly labelled, by their nearest neighbours."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imbalance_vlm import InputError, run
from imbalance_vlm.encoders.cache import FeatureCache
from imbalance_vlm.verification.label_errors import agreement
from imbalance_vlm.verification.verify import verify


def test_a_wrong_label_among_neighbours_is_suspected(recipe: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "colours"
    shutil.copytree(recipe["data"]["root"], root)
    os.replace(root / "train/red_apple/0.png", root / "train/blue_car/wrong.png")
    given = recipe | {"data": {"name": "folder", "root": str(root)}}
    result = verify(given, embeddings=True, neighbours=5, near=-1, device="cpu")
    suspected = result.findings[result.findings["kind"] == "label_suspect"]
    assert ("train/blue_car/wrong.png", "red apple") in set(zip(suspected["path"], suspected["other"], strict=True))
    with pytest.raises(InputError, match="encoder"):
        verify(root, embeddings=True)


def test_cached_features_of_a_run_are_used(recipe: dict[str, Any]) -> None:
    run(recipe)
    before = {entry.folder.name for entry in FeatureCache().entries()}
    verify(recipe, embeddings=True, near=-1, device="cpu")
    assert {entry.folder.name for entry in FeatureCache().entries()} == before
    assert len(before) == 2


def test_agreement_equals_that_of_plain_loops() -> None:
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(40, 3))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    labels = (keys[:, 0] > 0).astype(int)
    shared = agreement(torch.tensor(keys), torch.tensor(keys), torch.tensor(labels), 4, range(40)).tolist()
    for row in range(40):
        nearest = sorted((o for o in range(40) if o != row), key=lambda o: -float(keys[row] @ keys[o]))[:4]
        classes = {int(labels[o]) for o in nearest}
        assert shared[row] == (classes.pop() if len(classes) == 1 else -1)
    assert -1 in shared
