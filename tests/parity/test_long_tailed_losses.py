"""Losses for long tails against 20 steps of their released code, on a classifier of fixed image features.

The features are scaled to a mean square of 1 on both sides, so that one rate fits all. Not replayed, because ours
leaves it out on purpose: the class weights of VS (`train_rule` other than "None"), and PaCo's momentum encoder, second
views and keys from the batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalance_vlm import create_head
from imbalance_vlm.balancing.second_stages.base import Stage, StageTraining
from imbalance_vlm.balancing.second_stages.expert_aggregation import ExpertAggregation
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.long_tail import LongTail
from tests.parity import problem
from tests.parity.replay import check, record_of, replay

CIFAR = {
    "optimizer": {"name": "sgd", "lr": 0.02, "momentum": 0.9, "weight_decay": 2e-4},
    "schedule": {"name": "multistep", "milestones": [2, 3], "factor": 0.01},
}
"""LDAM's and VS's training: rates fall to .01 and .0001 of the peak."""
LINEAR = {"name": "linear", "init": "random", "normalise": False}


@pytest.fixture(scope="module")
def features(model: Path) -> Tensor:
    return problem.features(model)


def constant(lr: float) -> dict[str, Any]:
    return {"optimizer": {"name": "sgd", "lr": lr, "momentum": 0.9}, "schedule": "constant"}


def replayed(
    model: Path,
    features: Tensor,
    record: str,
    case: str,
    names: dict[str, str],
    loss: dict[str, Any],
    training: dict[str, Any],
    head: dict[str, Any] = LINEAR,
) -> None:
    recipe = {"tuning": "linear_probe", "head": head, "balancing": {"loss": loss}, "training": training}
    run = record_of(record)["runs"][case]
    check(run, *replay(model, recipe, names, decay_all=True, features=features))


LAYER = {"weight": "layer.weight", "bias": "layer.bias"}


@pytest.mark.parametrize(
    ("rule", "weights"),
    [("None", {}), ("Reweight", {"beta": 0.9999}), ("DRW", {"beta": 0.9999, "defer": 0.5})],
)
def test_ldam(model: Path, features: Tensor, rule: str, weights: dict[str, float]) -> None:
    loss = {"name": "ldam", "reduction": "weights"} | weights
    head = {"name": "cosine", "init": "random", "scale": 25}  # which the loss rescales to 30
    replayed(model, features, "ldam", f"rule {rule}", {"weight": "weight.T"}, loss, CIFAR, head)


@pytest.mark.parametrize(("case", "settings"), [("VS", {}), ("LA", {"gamma": 0.0}), ("CDT", {"tau": 0.0})])
def test_vs(model: Path, features: Tensor, case: str, settings: dict[str, float]) -> None:
    replayed(model, features, "vs", case, LAYER, {"name": "vs"} | settings, CIFAR)


@pytest.mark.parametrize(("lam", "alpha"), [(0.1, 0.05), (0.01, 0.1)])
def test_lade(model: Path, features: Tensor, lam: float, alpha: float) -> None:
    loss = {"name": "lade", "lam": lam, "alpha": alpha}
    replayed(model, features, "lade", f"lambda {lam}, weight {alpha}", LAYER, loss, constant(0.01))


@pytest.mark.parametrize(
    ("record", "case", "settings"),
    [
        ("paco", "alpha .05", {}),
        ("paco", "alpha .02, supt 2", {"alpha": 0.02, "temperature": 0.07, "supt": 2.0}),
        ("gpaco", "alpha .05", {}),
        # released smoothing leaves the true class out of what it spreads, ours does not: C / (C - 1) times as much
        ("gpaco", "smooth .1", {"label_smoothing": 0.1 * len(problem.NAMES) / (len(problem.NAMES) - 1)}),
    ],
)
def test_parametric_contrast(model: Path, features: Tensor, record: str, case: str, settings: dict[str, float]) -> None:
    names = {name: name for name in record_of(record)["runs"][case]["values"]}
    loss = {"name": record, "queue": 24} | settings
    replayed(model, features, record, case, names, loss, constant(0.005), LINEAR | {"adapter": 8})


def test_sade(model: Path, features: Tensor) -> None:
    run = record_of("sade")["runs"]["three experts"]
    names = {name: f"layers.{name}" for name in run["values"]}
    head = {"name": "experts", "normalise": False}
    replayed(model, features, "sade", "three experts", names, {"name": "sade"}, constant(0.01), head)


def test_aggregation_of_experts(model: Path, features: Tensor) -> None:
    """Twenty epochs of one batch, whose order does not matter, on two views of the images."""
    recipe = {
        "tuning": "linear_probe",
        "head": {"name": "experts", "normalise": False},
        "balancing": {"loss": "sade"},
        "training": constant(0.01),
    }
    names = {name: f"layers.{name}" for name in record_of("sade")["runs"]["three experts"]["values"]}
    _, _, trained = replay(model, recipe, names, features=features)
    head = create_head("experts", features.shape[1], len(problem.NAMES), normalise=False)
    head.load_state_dict({names[name]: value for name, value in trained.items()}, strict=False)
    source = FeatureSource([features.numpy()], problem.labels().numpy(), torch.device("cpu"))
    views = features, problem.second_view(features)
    stage = ExpertAggregation(
        features.shape[1], len(problem.NAMES), settings=StageTraining(epochs=20, lr=5.0, batch_size=len(features))
    )
    stage.fit(Stage(head, source, None, LongTail(problem.COUNTS), _no_training, lambda: views))
    check(record_of("sade")["runs"]["aggregation"], [], [], {"softmax of the weights": stage.shares()})


def _no_training(*_: Any) -> None:
    raise AssertionError("the aggregation trains its three weights itself")
