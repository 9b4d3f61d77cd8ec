"""Imbalance-VLM against 20 steps of its released code: the decoder with every loss, the schedule, the second stages.

Released tokens are taken before the tower's final norm: `encoder.final_norm: false`. Class-balanced sampling ("cbs") is
not replayed: it draws at random, and the batches are given here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.losses.ldam import LDAM
from imbalance_vlm.balancing.second_stages.base import SecondStage
from imbalance_vlm.balancing.second_stages.crt import CRT
from imbalance_vlm.balancing.second_stages.disalign import DisAlign
from imbalance_vlm.balancing.second_stages.lws import LWS
from imbalance_vlm.balancing.second_stages.marc import MARC
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.heads.decoder import DecoderHead
from imbalance_vlm.long_tail import LongTail
from tests.parity import problem
from tests.parity.replay import check, plain_start, record_of, replay, replay_stage

TRAINING = {
    "optimizer": {"name": "sgd", "lr": 0.0003, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "partial_cosine", "warmup_epochs": 1},
}
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {"name": "cross_entropy"},
    "cbw_loss": {"name": "weighted", "reduction": "weights"},
    "focal_loss": {"name": "focal"},
    "balanced_softmax": {"name": "balanced_softmax"},
    "grw_loss": {"name": "weighted", "rho": 1.2, "reduction": "weights"},
    "lade_loss": {"name": "lade", "lam": 0.1, "alpha": 0.1},
    "ldam_loss": {"name": "cross_entropy"},  # and then PLAIN_LDAM
}
PLAIN_LDAM = LDAM(LongTail(problem.COUNTS), s=1.0, head_scale=1.0)
"""The released margin is on plain logits; a recipe asks for a head of cosines."""


class PlainCRT(CRT):
    """Without the factor that ours multiplies the embeddings by, which the released classifier does not have."""

    def forward(self, embeddings: Tensor) -> Tensor:
        logits: Tensor = self.layer(embeddings)
        return logits


STAGES: dict[str, tuple[type[SecondStage], dict[str, str]]] = {
    "crt": (PlainCRT, {"backbone.classifier.weight": "layer.weight", "backbone.classifier.bias": "layer.bias"}),
    "lws": (LWS, {"scales": "scales"}),
    "disalign": (
        DisAlign,
        {
            "logit_scale": "magnitude",
            "logit_bias": "margin",
            "confidence_layer.weight": "confidence.weight",
            "confidence_layer.bias": "confidence.bias",
        },
    ),
    "marc": (MARC, {"a": "slope", "b": "shift"}),
}
DECAYED = ("backbone.classifier.weight", "logit_scale", "logit_bias", "confidence_layer.weight", "a", "b")
"""What has two dimensions in the released code; ours does not decay the calibrations (1, C)."""


def our_name(released: str) -> str:
    return released.replace("decoder_blocks", "blocks").replace("classifier", "layer")


def start(number: int, name: str, value: Tensor) -> Tensor:
    return problem.lively_start(name, *value.shape, seed=number)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_decoder(model: Path, loss: str) -> None:
    run = record_of("imbalance_vlm")["runs"][f"decoder, {loss}"]
    recipe = {
        "encoder": {"name": f"local-dir:{model}", "pretrained": None, "final_norm": False},
        "head": {"name": "decoder", "depth": 3, "heads": 4, "mlp_ratio": 0.5, "init": "random"},
        "tuning": "linear_probe",
        "balancing": {"loss": LOSSES[loss]},
        "training": TRAINING,
    }
    names = {name: our_name(name) for name in run["values"]}
    check(run, *replay(model, recipe, names, start=start, criterion=PLAIN_LDAM if loss == "ldam_loss" else None))


@pytest.fixture(scope="module")
def first_stage(model: Path) -> tuple[DecoderHead, Tensor]:
    """The decoder at its start, and what it makes of the problem's images."""
    encoder = create_encoder(f"local-dir:{model}", final_norm=False)
    head = DecoderHead(encoder.width("tokens"), len(problem.NAMES))
    names = record_of("imbalance_vlm")["runs"]["decoder, softmax"]["values"]
    with torch.no_grad():
        for number, name in enumerate(names, start=1):
            value = head.get_parameter(our_name(name))
            value.copy_(start(number, name, value))
        return head, head.embed(encoder.image_features(problem.images(), "tokens"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_second_stage(first_stage: tuple[DecoderHead, Tensor], stage: str) -> None:
    head, embeddings = first_stage
    run = record_of("imbalance_vlm")["runs"][stage]
    stage_type, names = STAGES[stage]

    def stage_start(number: int, name: str, value: Tensor) -> Tensor:
        if stage == "crt":  # the released re-initialisation misses the classifier of CLIP, which keeps its weights
            return head.layer.get_parameter(name.rpartition(".")[2])
        return plain_start(number - 2, name, value) if "confidence" in name else value

    blank = stage_type(embeddings.shape[1], len(problem.NAMES))
    check(run, *replay_stage(run, blank, head, embeddings, names, start=stage_start, decayed=DECAYED, nesterov=True))
