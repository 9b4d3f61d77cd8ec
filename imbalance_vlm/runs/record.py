"""What a run writes: its result, its predictions and its classifier."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from imbalance_vlm.components import catalogue
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.errors import InputError
from imbalance_vlm.escapes import csv_cell
from imbalance_vlm.evaluation.base import columns_of
from imbalance_vlm.evaluation.metrics import Predictions, per_class_accuracy
from imbalance_vlm.files import ENCODING, write_atomically, write_json
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.recipe.columns import evaluator_sections
from imbalance_vlm.recipe.schema import SAMPLER
from imbalance_vlm.results.result import SCHEMA_VERSION, RunResult, read_result
from imbalance_vlm.runs.classifier import TrainedClassifier
from imbalance_vlm.runs.environment import environment
from imbalance_vlm.runs.identity import config_hash
from imbalance_vlm.training.checkpoints import CHECKPOINT_FILE


def describe(
    recipe: Mapping[str, Any],
    data: Dataset,
    long_tail: LongTail,
    encoder: Encoder,
    scores: Mapping[str, float],
    predictions: Predictions,
    device: torch.device,
) -> dict[str, Any]:
    """The content of result.json: the parts of the run, its scores and where they were computed."""
    columns = columns_of(evaluator_sections(recipe["evaluation"]))
    return {
        "seed": recipe["seed"],
        "identity": {
            "recipe": recipe["name"],
            "dataset": data.name,
            "encoder": encoder.name,
            "pretrained": encoder.pretrained,
            "pretrain_pairs": encoder.pretrain_pairs,
            "samples_seen": encoder.samples_seen,
            "tuning": recipe["tuning"]["name"],
            "head": recipe["head"]["name"],
            "balancing": balancing_words(recipe),
        },
        "scores": dict(scores),
        "columns": [asdict(column) for column in columns],
        "classes": {
            "names": data.class_names,
            "templates": data.templates,
            "train_counts": long_tail.counts,
            "group_counts": long_tail.group_counts,
            "groups": {group: len(members) for group, members in long_tail.groups.items()},
            "accuracy": per_class_accuracy(predictions.labels, predictions.predicted, data.num_classes),
        },
        "images": {name: len(split) for name, split in data.splits.items()} | {"skipped": len(data.skipped)},
        "skipped": list(data.skipped),
        "passed_over": dict(data.passed_over),
        "left_out": data.left_out,
        "paper": recipe["paper"],
        "environment": environment(device),
    }


_TRANSDUCTIVE = " (novel names: label-space transductive)"
"""Marks a term that has seen the names of the classes it is tested on."""


def balancing_words(recipe: Mapping[str, Any]) -> str:
    """The loss, and what is not the default among sampler, regularizers, second stage and correction."""
    section = recipe["balancing"]
    words = [section["loss"]["name"]] if "training" in catalogue.TUNINGS.provided(recipe["tuning"]) else []
    if words and section["sampler"]["name"] != SAMPLER.default:
        words.append(f"{section['sampler']['name']} sampling")
    words += [term["name"] + _TRANSDUCTIVE * (term.get("names") == "novel") for term in section["regularizers"]]
    words += [section["second_stage"]["name"]] if section["second_stage"] else []
    words += [f"post-hoc {section['post_hoc']['name']}"] if section["post_hoc"] else []
    return " + ".join(words) or "none"


def write_run(
    folder: Path, classifier: TrainedClassifier, record: Mapping[str, Any], data: Dataset, predictions: Predictions
) -> RunResult:
    """Write everything that a run leaves. result.json is written last: a folder that holds it is complete."""
    digest = folder.name.rpartition("-")[2]  # of data and weights as they were when the run began
    classifier.save(folder, digest)
    write_atomically(folder / "predictions.csv", lambda path: _write_predictions(path, data, predictions))
    header = {"schema": SCHEMA_VERSION, "recipe_hash": digest, "config": config_hash(classifier.recipe)[:16]}
    write_json(folder / "result.json", header | dict(record))
    (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    result = read_result(folder)
    if result is None:
        raise InputError(f"{folder} was removed while the run was writing to it")
    return result


def _write_predictions(path: Path, data: Dataset, predictions: Predictions) -> None:
    images = data.splits["test"].images
    with path.open("w", newline="", **ENCODING) as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "predicted", "confidence"])
        rows = zip(predictions.labels, predictions.predicted, predictions.confidence, strict=True)
        for row, (label, predicted, confidence) in enumerate(rows):
            texts = images.name(row), data.class_names[label], data.class_names[predicted]
            writer.writerow([*map(csv_cell, texts), f"{confidence:.4f}"])
