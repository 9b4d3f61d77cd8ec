"""Methods of CoOp's family against 20 steps of their released code (tests/parity/records)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parity.problem import NOVEL_NAMES, write_model
from tests.parity.replay import check, record_of, replay

TRAINING = {
    "schedule": {"name": "cosine_constant_warmup"},
    "epochs": 4,
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("clip"))


def replayed(model: Path, record: str, case: str, names: dict[str, str], tuning: dict[str, Any], **more: Any) -> None:
    """Train as a record says, with `more` settings of a recipe, and compare."""
    run = record_of(record)["runs"][case]
    settings = run["settings"]
    optimizer = {
        "name": "sgd",
        "lr": settings.get("OPTIM.LR", 0.02),
        "momentum": 0.9,
        "weight_decay": settings.get("OPTIM.WEIGHT_DECAY", 5e-4),
    }
    training = TRAINING | {"optimizer": optimizer}
    recipe = {"tuning": {"name": "prompt", "init": None, "n_ctx": 4} | tuning, "head": "text", "training": training}
    check(run, *replay(model, recipe | more, names, novel_names=NOVEL_NAMES))


CONTEXT = {"prompt_learner.ctx": "context"}


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_coop(model: Path, position: str) -> None:
    replayed(model, "coop", f"position {position}", CONTEXT, {"method": "coop", "position": position})


def test_coop_with_a_context_per_class(model: Path) -> None:
    replayed(model, "coop", "context per class", CONTEXT, {"method": "coop", "csc": True})


def test_cocoop(model: Path) -> None:
    layers = {
        f"prompt_learner.meta_net.linear{number}.{part}": f"net.{place}.{part}"
        for number, place in ((1, 0), (2, 2))
        for part in ("weight", "bias")
    }
    replayed(model, "cocoop", "default", CONTEXT | layers, {"method": "cocoop"})


def test_kgcoop(model: Path) -> None:
    replayed(model, "kgcoop", "default", CONTEXT, {"method": "kgcoop"})


def test_prograd(model: Path) -> None:
    replayed(model, "prograd", "default", CONTEXT, {"method": "prograd"})


def test_maple(model: Path) -> None:
    names = CONTEXT | {
        "prompt_learner.proj.weight": "couplings.0.weight",
        "prompt_learner.proj.bias": "couplings.0.bias",
        "prompt_learner.compound_prompts_text.0": "deep[0]",
        "prompt_learner.compound_prompts_text.1": "deep[1]",
    }
    for number in range(2):
        for part in ("weight", "bias"):
            theirs = f"prompt_learner.compound_prompt_projections.{number}.{part}"
            names[theirs] = f"couplings.{number + 1}.{part}"
    replayed(model, "maple", "depth 3", names, {"method": "maple", "n_ctx": 2, "depth": 3})


TWO_TOWERS = CONTEXT | {
    "image_encoder.VPT": "tokens[0]",
    "image_encoder.transformer.resblocks.1.VPT_shallow": "tokens[1]",
    "image_encoder.transformer.resblocks.2.VPT_shallow": "tokens[2]",
    "text_encoder.transformer.resblocks.1.VPT_shallow": "deep[0]",
    "text_encoder.transformer.resblocks.2.VPT_shallow": "deep[1]",
}


def test_ivlp(model: Path) -> None:
    replayed(model, "ivlp", "depth 3", TWO_TOWERS, {"method": "ivlp", "n_ctx": 3, "tokens": 2, "depth": 3})


def test_promptsrc(model: Path) -> None:
    tuning = {"method": "promptsrc", "n_ctx": 3, "tokens": 2, "depth": 3, "mean": 3.0, "std": 1.0}
    replayed(model, "promptsrc", "depth 3", TWO_TOWERS, tuning)


def test_nfl(model: Path) -> None:
    anchor = {"name": "text_anchor", "names": "novel", "target": "openai", "distance": "cos", "weight": 1.0}
    replayed(model, "nfl", "default", CONTEXT, {"method": "coop"}, balancing={"regularizers": [anchor]})


def test_subpt(model: Path) -> None:
    """Without weight decay, which ours keeps in the subspace and the released code does not."""
    subspace = {"name": "subspace", "keep": 3, "rank": 2}
    replayed(model, "subpt", "first pass", CONTEXT, {"method": "coop"})
    replayed(model, "subpt", "T 3, r 2", CONTEXT, {"method": "coop"}, balancing={"gradient": subspace})
