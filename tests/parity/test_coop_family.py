"""Methods of CoOp's family against 20 steps of their released code (tests/parity/records)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parity.problem import write_model
from tests.parity.replay import check, record_of, replay

OPTIMIZER = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
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
    training = TRAINING | {"optimizer": OPTIMIZER | {"lr": run["settings"].get("OPTIM.LR", 0.02)}}
    recipe = {"tuning": {"name": "prompt", "init": None, "n_ctx": 4} | tuning, "head": "text", "training": training}
    check(run, *replay(model, recipe | more, names))


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
