"""The run folder: where it is, and the order in which it is filled.

result.json is written last: a folder that has it is complete.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from imbalance_vlm import __version__
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import dataset_identity
from imbalance_vlm.encoders.factory import encoder_identity
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.files import write_atomically, write_json, write_text
from imbalance_vlm.results.result import SCHEMA_VERSION, RunResult, read_result
from imbalance_vlm.training.checkpoints import save_weights

_NO_INFLUENCE = ("name", "description", "paper")
_ONLY_HOW = ("checkpoint_seconds", "shard")
"""Settings of the training that say how its numbers are come by, not which they are."""
_LATER = {("encoder", "decoder"): "pil", ("encoder", "resized"): 0, ("training", "shard"): False}
"""Settings that are younger than finished runs, each with the value at which nothing is other than it was before: at
that value a setting does not count, so that what was run without it is found again."""


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of everything that the numbers depend on: the recipe, its data, its weights, and our version.

    It does not see the code: after changing a component, run with --force.
    """
    core = {key: value for key, value in _without_later(recipe).items() if key not in _NO_INFLUENCE}
    core["training"] = {key: value for key, value in core["training"].items() if key not in _ONLY_HOW}
    parts = [
        json.dumps(core, sort_keys=True, default=str),
        dataset_identity(core["data"]),
        *(dataset_identity(section) for section in recipe["evaluation"]["transfer"]),
        encoder_identity(core["encoder"]),
        __version__,
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_folder(root: Path, recipe: Mapping[str, Any]) -> Path:
    """`root/<recipe name>/seed<seed>-<hash>`: a recipe that differs in anything has another folder."""
    name = re.sub(r'[\\:*?"<>|]', "-", recipe["name"])  # what some file systems have no place for
    return root / name / f"seed{recipe['seed']}-{recipe_hash(recipe)[:16]}"


def config_hash(recipe: Mapping[str, Any]) -> str:
    """What the runs of one configuration share: everything but the seed."""
    core = _without_later(recipe) | {"seed": None}
    return hashlib.sha256(json.dumps(core, sort_keys=True, default=str).encode()).hexdigest()


def _without_later(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the settings of `_LATER` that are as they were before they could be set."""
    return {
        key: {name: item for name, item in value.items() if (key, name) not in _LATER or item != _LATER[key, name]}
        if isinstance(value, Mapping)
        else value
        for key, value in recipe.items()
    }


def write_run(
    folder: Path,
    recipe: Mapping[str, Any],
    record: Mapping[str, Any],
    head: nn.Module,
    data: Dataset,
    predictions: Predictions,
    base: str = "",
) -> RunResult:
    """Write everything a run leaves, result.json last; `base` is the fingerprint of the encoder it was trained on."""
    digest = folder.name.rpartition("-")[2]  # of the data and weights as they were when the run began
    write_text(folder / "recipe.resolved.yaml", yaml.safe_dump(plain(recipe), sort_keys=False))
    if any(True for _ in head.state_dict()):
        save_weights(folder / "head.safetensors", head, {"recipe": recipe["name"], "recipe_hash": digest, "base": base})
    write_atomically(folder / "predictions.csv", lambda path: _write_predictions(path, data, predictions))
    head_line = {"schema": SCHEMA_VERSION, "recipe_hash": digest, "config": config_hash(recipe)[:16]}
    write_json(folder / "result.json", head_line | dict(record))
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    written = read_result(folder)
    if written is None:
        raise InputError(f"{folder} was removed while the run was writing to it")
    return written


def plain(value: Any) -> Any:
    """Mappings, lists and strings alone, as YAML writes them."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _write_predictions(path: Path, data: Dataset, predictions: Predictions) -> None:
    images = data.splits["test"].images
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "predicted", "confidence"])
        rows = zip(predictions.labels, predictions.predicted, predictions.confidence, strict=True)
        for row, (label, predicted, confidence) in enumerate(rows):
            names = data.class_names[label], data.class_names[predicted]
            writer.writerow([images.name(row), *names, f"{confidence:.4f}"])
