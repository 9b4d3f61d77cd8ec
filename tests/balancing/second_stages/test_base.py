"""What every second stage does, and each against its oracle; the comparison rejects the first stage's classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.cross_entropy import CrossEntropy
from imbalance_vlm.balancing.losses.weighted import Weighted
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.balancing.samplers.class_aware import ClassAwareSampler
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.balancing.samplers.sqrt import SqrtSampler
from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.balancing.selection import class_mean_accuracy
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.sources import FeatureSource
from tests.balancing.second_stages import oracles
from tests.balancing.second_stages.problem import (
    COUNTS,
    EMBEDDINGS,
    TEST,
    WIDTH,
    PlainHead,
    draws,
    fitted,
    loop_of,
    rows_of,
    stage_on,
)

BUILDS = {entry.name: entry.load() for entry in catalogue.SECOND_STAGES if "experts" not in entry.needed({})}
"""Second stages for any head; those for several experts are tested elsewhere."""
TRAINED = {
    "crt": {"layer.weight", "layer.bias"},
    "lws": {"scales"},
    "disalign": {"magnitude", "margin", "confidence.weight", "confidence.bias"},
    "marc": {"slope", "shift"},
}
"""The parameters of the stages that train."""


# -- the formulas ----------------------------------------------------------------------------------------------------


def by_oracle(name: str, second: SecondStage, stage: Stage, settings: dict[str, Any]) -> list[list[float]]:
    """Logits of EMBEDDINGS by the oracle, from the first stage's own weights and what the second stage learned."""
    weight, bias = stage.weight().tolist(), stage.bias().tolist()
    state = {key: value.tolist() for key, value in second.state_dict().items()}
    train = rows_of(stage.train)

    def logits(f: list[float]) -> list[float]:
        if name == "crt":
            return oracles.crt(f, train, state["layer.weight"], state["layer.bias"])
        if name == "lws":
            return oracles.lws(f, weight, bias, state["scales"])
        if name == "disalign":
            v, v_0 = state["confidence.weight"][0], state["confidence.bias"][0]
            return oracles.disalign(f, weight, bias, state["magnitude"], state["margin"], v, v_0)
        if name == "marc":
            return oracles.marc(f, weight, bias, state["slope"], state["shift"])
        if name == "tau_norm":
            return oracles.tau_norm(f, weight, settings["tau"])
        return oracles.ncm(f, train, stage.train.labels.tolist(), stage.long_tail.num_classes, **settings)

    return [logits(f) for f in EMBEDDINGS.tolist()]


CASES: list[tuple[str, dict[str, Any]]] = [
    ("crt", {}),
    ("lws", {}),
    ("disalign", {}),
    ("marc", {}),
    ("tau_norm", {"tau": 0.7}),
    ("tau_norm", {"tau": 2.0}),
    ("ncm", {}),
    ("ncm", {"centre": False, "scale": 7.0}),
    ("ncm", {"metric": "euclidean"}),
    ("ncm", {"metric": "euclidean", "centre": False}),
]


def assert_matches_oracle(
    name: str, settings: dict[str, Any], stage: Stage, predict: Callable[[Tensor], Tensor] | None = None
) -> None:
    second = fitted(BUILDS[name], stage, **settings)
    with torch.no_grad():
        got = (second if predict is None else predict)(EMBEDDINGS)
    np.testing.assert_allclose(got.numpy(), by_oracle(name, second, stage, settings), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_matches_its_equation(name: str, settings: dict[str, Any], stage: Stage) -> None:
    assert_matches_oracle(name, settings, stage)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_oracle_rejects_the_first_stage(name: str, settings: dict[str, Any], stage: Stage) -> None:
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_matches_oracle(name, settings, stage, stage.head.classify)


@pytest.mark.parametrize("name", BUILDS)
def test_every_second_stage_has_an_oracle(name: str) -> None:
    assert name in {case for case, _ in CASES}, f"add '{name}' to CASES and to second_stage_oracles.py"


# -- what is trained, and on what ------------------------------------------------------------------------------------


def assert_first_step_descends(name: str, stage: Stage, weighted_by: float, **settings: Any) -> None:
    """One step over the whole training set moves what is trained by -lr times the slope of the oracle's loss.

    `weighted_by` is the exponent of the class weights in that loss.
    """
    train, labels = rows_of(stage.train), stage.train.labels.tolist()
    weight, bias = stage.weight().tolist(), stage.bias().tolist()
    classes, lr = len(weight), 0.05

    def loss(logits: Callable[[list[float]], list[float]]) -> float:
        return oracles.mean_loss([logits(f) for f in train], labels, stage.long_tail.counts.tolist(), weighted_by)

    second = fitted(BUILDS[name], stage, seed=5, epochs=1, lr=lr, batch_size=len(train), **settings)
    got = {key: value.tolist() for key, value in second.named_parameters()}
    ones, zeros = [1.0] * classes, [0.0] * classes
    torch.manual_seed(5)
    if name == "lws":
        slope = oracles.slope(lambda s: loss(lambda f: oracles.lws(f, weight, bias, s)), ones)
        moved, start = got["scales"], ones
    elif name == "marc":
        slope = oracles.slope(
            lambda p: loss(lambda f: oracles.marc(f, weight, bias, p[:classes], p[classes:])), ones + zeros
        )
        moved, start = got["slope"] + got["shift"], ones + zeros
    elif name == "disalign":
        first = nn.Linear(WIDTH, 1)
        start = ones + zeros + first.weight.tolist()[0] + first.bias.tolist()
        slope = oracles.slope(
            lambda p: loss(
                lambda f: oracles.disalign(
                    f, weight, bias, p[:classes], p[classes : 2 * classes], p[2 * classes : -1], p[-1]
                )
            ),
            start,
        )
        moved = got["magnitude"] + got["margin"] + got["confidence.weight"][0] + got["confidence.bias"]
    else:
        layer = nn.Linear(WIDTH, classes)
        rows, start = layer.weight.tolist(), layer.bias.tolist()
        squares = np.square(train).mean()
        scaled = [[entry / math.sqrt(squares) for entry in f] for f in train]
        slope = oracles.slope(
            lambda b: oracles.mean_loss(
                [oracles.linear(f, rows, b) for f in scaled], labels, stage.long_tail.counts.tolist(), weighted_by
            ),
            start,
        )
        moved = got["layer.bias"]
    wanted = [p - lr * s for p, s in zip(start, slope, strict=True)]
    assert np.abs(np.subtract(moved, start)).max() > 1e-3, "nothing moved"
    np.testing.assert_allclose(moved, wanted, atol=2e-5)


RHO = {"crt": 0.0, "lws": 0.0, "disalign": 1.2, "marc": 1.2}


@pytest.fixture
def small() -> Stage:
    source = draws([9, 3, 2], seed=4)
    return stage_on(source, PlainHead(WIDTH, 3))


@pytest.mark.parametrize("name", RHO)
def test_first_step_descends_the_loss_of_the_paper(name: str, small: Stage) -> None:
    plain = {"sampler": "instance"} if name in ("crt", "lws") else {}
    assert_first_step_descends(name, small, RHO[name], **plain)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_first_step_descends(name, small, 1.2 - RHO[name], **plain)


@pytest.mark.parametrize("name", ["disalign", "marc"])
def test_rho_reaches_the_loss(name: str, small: Stage) -> None:
    assert_first_step_descends(name, small, 0.5, rho=0.5)


@pytest.mark.parametrize(
    ("name", "loss", "sampler", "plan"),
    [
        ("crt", CrossEntropy, ClassAwareSampler, (10, 0.1, 512)),
        ("lws", CrossEntropy, ClassAwareSampler, (5, 0.1, 512)),
        ("disalign", Weighted, InstanceSampler, (10, 0.1, 256)),
        ("marc", Weighted, InstanceSampler, (10, 0.03, 256)),
    ],
)
def test_trains_once_with_the_settings_of_the_paper_or_the_given_ones(
    name: str, loss: type[Loss], sampler: type[Sampler], plan: tuple[int, float, int], stage: Stage
) -> None:
    fitted(BUILDS[name], stage)
    fitted(BUILDS[name], stage, epochs=2, lr=0.5, batch_size=100)
    calls = loop_of(stage).calls
    settings = [(call.training.epochs, call.training.lr, call.training.batch_size) for call in calls]
    assert settings == [plan, (2, 0.5, 100)]
    assert [(type(call.criterion), type(call.sampler)) for call in calls] == [(loss, sampler)] * 2


@pytest.mark.parametrize("name", ["crt", "lws"])
def test_sampler_can_be_chosen_and_an_unknown_one_is_refused_at_once(name: str, stage: Stage) -> None:
    fitted(BUILDS[name], stage, sampler="sqrt")
    assert isinstance(loop_of(stage).calls[0].sampler, SqrtSampler)
    with pytest.raises(InputError, match="Did you mean 'class_aware'"):
        catalogue.SECOND_STAGES.make(
            {"name": name, "sampler": "class_awar"}, {"width": lambda _: WIDTH, "num_classes": lambda _: 3}
        )


@pytest.mark.parametrize("name", BUILDS)
def test_only_declared_parameters_are_trained(name: str, stage: Stage) -> None:
    weight, bias = stage.weight(), stage.bias()
    second = BUILDS[name](WIDTH, len(COUNTS))
    assert {key for key, p in second.named_parameters() if p.requires_grad} == TRAINED.get(name, set())
    second.fit(stage)
    assert bool(loop_of(stage).calls) == (name in TRAINED)
    assert torch.equal(stage.weight(), weight)
    assert torch.equal(stage.bias(), bias)
    if name in ("lws", "disalign", "marc"):
        assert torch.equal(second.get_buffer("weight"), weight)
        assert torch.equal(second.get_buffer("bias"), bias)


# -- what every second stage does ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "settings"), [("lws", {"sampler": "instance"}), *CASES[2:]])
def test_renumbering_the_classes_permutes_the_logits(name: str, settings: dict[str, Any], stage: Stage) -> None:
    order = torch.tensor([2, 5, 0, 3, 1, 4])
    assert isinstance(stage.train, FeatureSource)
    labels = torch.argsort(order)[stage.train.labels].numpy()
    head = PlainHead(WIDTH, len(COUNTS))
    head.layer.load_state_dict({"weight": stage.weight()[order], "bias": stage.bias()[order]})
    views = [view.numpy() for view in stage.train.views if isinstance(view, Tensor)]
    renumbered = stage_on(FeatureSource(views, labels, torch.device("cpu")), head)
    got = fitted(BUILDS[name], renumbered, **settings)(EMBEDDINGS)
    wanted = fitted(BUILDS[name], stage, **settings)(EMBEDDINGS)
    torch.testing.assert_close(got, wanted[:, order], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BUILDS)
def test_class_mean_accuracy_exceeds_that_of_cross_entropy(name: str, stage: Stage) -> None:
    embeddings, labels = next(TEST.batches([torch.arange(len(TEST))]))
    first = class_mean_accuracy(stage.head.classify(embeddings), labels)
    second = class_mean_accuracy(fitted(BUILDS[name], stage)(embeddings), labels)
    assert second > first + 8, f"{name}: {second:.1f} % after {first:.1f} %"
