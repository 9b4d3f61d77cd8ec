"""cRT, LWS, tau-normalisation and DisAlign against their released code, on a fixed linear classifier of image features.

The features have a mean square of 1, so that cRT's factor on them is 1.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage
from imbalance_vlm.balancing.second_stages.crt import CRT
from imbalance_vlm.balancing.second_stages.disalign import DisAlign
from imbalance_vlm.balancing.second_stages.lws import LWS
from imbalance_vlm.balancing.second_stages.tau_norm import TAUS, TauNorm
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.long_tail import LongTail
from tests.parity import problem
from tests.parity.replay import check, plain_start, record_of, replay_stage

CONFIDENCE = {"confidence_layer.weight": "confidence.weight", "confidence_layer.bias": "confidence.bias"}


@pytest.fixture(scope="module")
def features(model: Path) -> Tensor:
    return problem.features(model)


@pytest.fixture
def first_stage(features: Tensor) -> LinearHead:
    """The classifier before its second stage."""
    head = LinearHead(features.shape[1], len(problem.NAMES), normalise=False)
    with torch.no_grad():
        for number, value in enumerate((head.layer.weight, head.layer.bias), start=1):
            value.copy_(problem.start(*value.shape, seed=number))
    return head


def second_stage(kind: type[SecondStage], features: Tensor) -> SecondStage:
    return kind(features.shape[1], len(problem.NAMES))


def test_crt(features: Tensor, first_stage: LinearHead) -> None:
    run = record_of("crt")["runs"]["cRT"]
    names = {"fc.weight": "layer.weight", "fc.bias": "layer.bias"}
    blank = second_stage(CRT, features)
    check(run, *replay_stage(run, blank, first_stage, features, names, decayed=tuple(names)))


def test_lws(features: Tensor, first_stage: LinearHead) -> None:
    """The scales decay in the released code; ours starts them at 1, as theirs."""
    run = record_of("lws")["runs"]["LWS"]
    names = {"scales": "scales"}
    check(
        run,
        *replay_stage(
            run,
            second_stage(LWS, features),
            first_stage,
            features,
            names,
            start=lambda number, name, value: value,
            decayed=tuple(names),
        ),
    )


def test_disalign(features: Tensor, first_stage: LinearHead) -> None:
    """All that is learned decays in the released code; the confidence starts as the recorder set it."""
    run = record_of("disalign")["runs"]["rho 1.2"]
    names = {"logit_scale": "magnitude", "logit_bias": "margin"} | CONFIDENCE

    def start(number: int, name: str, value: Tensor) -> Tensor:
        return plain_start(number - 2, name, value) if name in CONFIDENCE else value

    blank = second_stage(DisAlign, features)
    check(run, *replay_stage(run, blank, first_stage, features, names, start=start, decayed=tuple(names)))


def test_tau_normalisation(features: Tensor, first_stage: LinearHead) -> None:
    def logits(tau: float) -> Tensor:
        normalised = TauNorm(features.shape[1], len(problem.NAMES), tau=tau)
        normalised.fit(
            Stage(first_stage, source, None, LongTail(problem.COUNTS), _no_training, lambda: (features,) * 2)
        )
        return normalised(features)

    source = FeatureSource([features.numpy()], problem.labels().numpy(), torch.device("cpu"))
    run = record_of("tau_norm")["runs"]["tau 0 to 2"]
    assert len(TAUS) == len(run["values"])
    check(run, [], [], {f"logits at tau {tau:.1f}": logits(tau) for tau in TAUS})


def _no_training(*_: object) -> None:
    raise AssertionError("tau-normalisation trains nothing")
