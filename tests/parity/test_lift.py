"""LIFT against 20 steps of its released code: methods in the tower, losses, heads, schedule, and the five test crops.

Released SGD decays every trained value, ours matrices only: `decay_all`. All else is set by the recipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import Tensor

from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.evaluation.tta import AllViews, views_of
from tests.parity import problem
from tests.parity.replay import check, record_of, replay

TRAINING = {
    "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "cosine", "every": "epoch"},
}
METHODS = {
    "adaptformer": {"method": "adaptformer", "width": 8},
    "adapter": {"method": "adapter", "width": 8},
    "lora": {"method": "lora", "rank": 8},
    "vpt deep": {"method": "vpt", "tokens": 4},
    "vpt shallow": {"method": "vpt", "tokens": 4, "deep": False},
    "ssf": {"method": "ssf", "outside_blocks": False},
}
LOSSES: dict[str, dict[str, Any]] = {
    "CE": {"name": "cross_entropy"},
    "Focal": {"name": "focal"},
    "LDAM": {"name": "ldam", "s": None},
    "CB": {"name": "class_balanced", "reduction": "weights"},
    "GRW": {"name": "weighted", "reduction": "weights"},
    "BS": {"name": "balanced_softmax"},
    "LA": {"name": "logit_adjustment"},
    "LADE": {"name": "lade", "lam": 0.1, "alpha": 0.1},
}
COSINE = {"name": "cosine", "init": "text", "scale": 25}
PARTS = {
    "ln": "norm", "down_proj": "down", "up_proj": "up", "prompt": "tokens",
    "q.lora_A": "attention_in.q_down.T", "q.lora_B": "attention_in.q_up.T",
    "v.lora_A": "attention_in.v_down.T", "v.lora_B": "attention_in.v_up.T",
    "attn_in": "attention_in", "attn_out": "attention_out", "mlp_in": "mlp_c_fc", "mlp_out": "mlp_c_proj",
    "ln_1": "norm1", "ln_2": "norm2",
}  # fmt: skip
"""Our names of the parts of LIFT's modules."""


def our_name(released: str) -> str:
    """Our name of a value that LIFT trains in the tower or in the head on it."""
    if released == "head.weight":
        return "inner.weight"
    _, modules, block, part = released.split(".", 3)
    method = modules.split("_")[0]
    place, _, leaf = part.rpartition(".")
    part = PARTS.get(part) or f"{PARTS[place]}.{leaf}" if place else PARTS.get(part, part)
    return f"tower.transformer.resblocks.{block}.{method}.{part}"


def start(number: int, name: str, value: Tensor) -> Tensor:
    """As the recorder sets it; the classifier keeps its start from text features."""
    return value if name == "head.weight" else problem.lively_start(name, *value.shape, seed=number)


def replayed(model: Path, case: str, names: dict[str, str], recipe: dict[str, Any]) -> None:
    encoder = {"name": f"local-dir:{model}", "pretrained": None, "features": "class_token"}
    run = record_of("lift")["runs"][case]
    recipe = {"encoder": encoder, "head": COSINE, "training": TRAINING} | recipe
    check(run, *replay(model, recipe, names, start=start, decay_all=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_in_the_tower(model: Path, method: str) -> None:
    case = f"{method}, LA"
    names = {name: our_name(name) for name in record_of("lift")["runs"][case]["values"]}
    recipe = {"tuning": {"name": "peft"} | METHODS[method], "balancing": {"loss": LOSSES["LA"]}}
    replayed(model, case, names, recipe)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss(model: Path, loss: str) -> None:
    recipe = {"tuning": "linear_probe", "balancing": {"loss": LOSSES[loss]}}
    replayed(model, f"head only, {loss}", {"head.weight": "weight"}, recipe)


def test_a_linear_head(model: Path) -> None:
    head = {"name": "linear", "init": "text", "normalise": False}
    names = {"head.weight": "layer.weight", "head.bias": "layer.bias"}
    recipe = {"tuning": "linear_probe", "head": head, "balancing": {"loss": LOSSES["LA"]}}
    replayed(model, "linear head, LA", names, recipe)


def test_five_crops() -> None:
    clip = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    preprocessing = Preprocessing(size=(32, 32), interpolation="bilinear", **clip)
    views = AllViews(tuple(views_of(preprocessing, "five_crops", flips=False, margin=4)))
    centre, *corners = views(Image.fromarray(problem.photograph()))
    check(
        record_of("lift")["runs"]["five crops"],
        [],
        [],
        {f"crop {number}": view for number, view in enumerate([*corners, centre])},
    )
