"""Two processes on the CPU train as one does. This file is also the program that they run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import imbalance_vlm
from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.data.dataset import ArrayImages, Split
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training import state
from imbalance_vlm.training.distributed.processes import join, process_group
from imbalance_vlm.training.distributed.sharding import full_state, is_sharded, shard_tower
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.schedules import cosine
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.base import TowerMethod
from imbalance_vlm.tuning.peft.full import Full
from imbalance_vlm.tuning.peft.lora import LoRA

METHODS: dict[str, type[TowerMethod]] = {"adaptformer": AdaptFormer, "full": Full, "lora": LoRA}
LABELS = np.array([0] * 11 + [1] * 4 + [2] * 2)  # 17: the last batch of 8 holds a single image
CPU = torch.device("cpu")
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 8, "heads": 2, "layers": 1},
}


class Dropped(LinearHead):
    """A linear head with dropout on its features."""

    def embed(self, features: Tensor) -> Tensor:
        return F.dropout(super().embed(features), 0.5, self.training)


class MeanNorm(Regularizer):
    """Depends on the whole batch, by the norm of its mean, and on the batch before."""

    past: Tensor

    def __init__(self) -> None:
        super().__init__(0.3)
        self.register_buffer("past", torch.zeros(()))

    def forward(self, seen: StepOutputs) -> Tensor:
        now = seen.logits.mean(0).norm() * seen.embeddings.std()
        value = (now - self.past).square()
        self.past = now.detach()
        return value


class Sign(Gradient):
    """Not linear: the signs of a batch's gradient do not follow from those of its halves."""

    @property
    def is_linear(self) -> bool:
        return False

    def start(self, parameters: Any) -> None:
        self.trained = list(parameters.values())

    def backward(self, loss: Tensor, seen: StepOutputs) -> None:
        for parameter, gradient in zip(self.trained, torch.autograd.grad(loss, self.trained), strict=True):
            parameter.grad = gradient.sign() * 0.01


def linear(loss: str = "cross_entropy", head: type[LinearHead] = LinearHead, **settings: Any) -> tuple[Objective, Any]:
    """Vectors through a linear head."""
    features = np.random.default_rng(0).normal(size=(len(LABELS), 6)).astype(np.float32)
    criterion = create_loss(loss, LongTail(np.bincount(LABELS)), **settings)
    return Objective(head(6, 3, normalise=False), criterion), FeatureSource([features], LABELS, CPU)


def regularized() -> tuple[Objective, Any]:
    objective, source = linear()
    return Objective(objective.head, objective.criterion, [MeanNorm()]), source


def transformed() -> tuple[Objective, Any]:
    objective, source = linear()
    return Objective(objective.head, objective.criterion, gradient=Sign()), source


def tower() -> nn.Module:
    import open_clip

    return open_clip.CLIP(**TINY)


def tuned(method: str, sharded: bool = False) -> tuple[Objective, Any]:
    """Images through a tiny tower under tuning."""
    from imbalance_vlm.tuning.tower_head import TowerHead

    net = tower()

    def transform(image: Any) -> Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255 - 0.5

    encoder = OpenClipEncoder(net, transform, None, "tiny", "random", None, "")
    tuned_net = METHODS[method]().apply(net, 3)
    head: Head = TowerHead(encoder, tuned_net, LinearHead(8, 3), "embedding")
    for parameter in head.parameters():  # up-projections start at zero, and with them all gradients below
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if sharded:
        shard_tower(net.visual, head)
    pixels = np.random.default_rng(0).integers(0, 255, (len(LABELS), 16, 16, 3), dtype=np.uint8)
    source = PixelSource(Split(ArrayImages(pixels), LABELS), [transform], CPU)
    return Objective(head, create_loss("logit_adjustment", LongTail(np.bincount(LABELS)))), source


CASES: dict[str, tuple[Callable[[], tuple[Objective, Any]], dict[str, Any]]] = {
    "linear": (linear, {}),
    "linear, clipped, in two parts, averaged": (linear, {"clip_grad_norm": 0.1, "accumulate": 2, "ema": 0.5}),
    "half-way back": (linear, {"interpolation": 0.5}),
    "weighted": (lambda: linear("weighted", reduction="weights"), {}),
    "lade": (lambda: linear("lade", alpha=1.0), {}),
    "paco": (lambda: linear("paco", queue=12), {}),
    "gpaco": (lambda: linear("gpaco", queue=12), {}),
    "gaussian_clouded": (lambda: linear("gaussian_clouded", head_scale=1.0), {}),
    "regularizer over the batch": (regularized, {}),
    "gradient transform": (transformed, {}),
    "pixels, adaptformer": (lambda: tuned("adaptformer"), {"clip_grad_norm": 1.0}),
    "pixels, full": (lambda: tuned("full"), {}),
}
LINEAR = [*(case for case in CASES if not case.startswith("pixels")), "dropout"]
ONLY_IN_TWO = {
    "dropout": (lambda: linear(head=Dropped), {}),
    "pixels, full, sharded": (lambda: tuned("full", sharded=True), {"clip_grad_norm": 1.0}),
    "pixels, lora, sharded": (lambda: tuned("lora", sharded=True), {}),
}
RESUMED = ("linear", "dropout", "gaussian_clouded", "pixels, full, sharded")


def run(case: str, folder: Path, stop_at: int | None = None) -> dict[str, Any]:
    """Losses of two epochs, and the weights after them; KeyboardInterrupt before step `stop_at`."""
    make, settings = (CASES | ONLY_IN_TWO)[case]
    torch.manual_seed(3)
    objective, source = make()
    plan = TrainingSettings(**{"epochs": 2, "batch_size": 8, "checkpoint_seconds": 0.0} | settings)
    parameters = [parameter for parameter in objective.head.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.01)
    if case not in LINEAR:  # AdamW would amplify the rounding errors that are the gradient of a tower's key biases
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    schedule = cosine(plan.epochs, steps_per_epoch(source, plan.batch_size))

    def interrupted_schedule(step: int, peak: float) -> float:
        if step == stop_at:
            raise KeyboardInterrupt
        return schedule(step, peak)

    folder.mkdir(parents=True, exist_ok=True)
    sampler = InstanceSampler(source.labels, 0)
    trained = train(objective, source, sampler, optimizer, interrupted_schedule, folder, settings=plan)
    weights = full_state(objective.state_dict())
    return {
        "losses": [row["loss"] for row in trained.history],
        "weights": {key: value.flatten().tolist() for key, value in weights.items() if value.is_floating_point()},
        "sharded": sum(map(is_sharded, parameters)),
    }


def interrupted(case: str, folder: Path, stop_at: int) -> dict[str, Any]:
    with pytest.raises(KeyboardInterrupt):
        run(case, folder, stop_at)
    return run(case, folder)


RECIPES: dict[str, dict[str, Any]] = {
    "full, sharded": {"tuning": "full", "head": "cosine", "training.shard": True},
    "full, kl": {"tuning": {"name": "full", "kl": 3.0}, "head": "cosine"},
    "full, kl, sharded": {"tuning": {"name": "full", "kl": 3.0}, "head": "cosine", "training.shard": True},
    "lora, sharded, with a second stage": {
        "tuning": {"name": "peft", "method": "lora"},
        "head": "cosine",
        "training.shard": True,
        "balancing.second_stage": {"name": "crt", "epochs": 1},
    },
    "promptsrc": {"tuning": {"name": "prompt", "method": "promptsrc", "mean": 2.0}, "head": "text"},
}
"""Whole runs, one after the other in the same processes: a run must not inherit the sharded tower of the one before."""


def recipe_of(case: str, images: Path, tiny_clip: str) -> dict[str, Any]:
    return {
        "name": "two",
        "data": {"name": "folder", "root": str(images)},
        "encoder": {"name": tiny_clip},
        "balancing": {"loss": "logit_adjustment"},
        "training": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.02}, "clip_grad_norm": 1.0},
        "evaluation": {"groups": {"many": 12, "few": 6}},
    } | {key: value for key, value in RECIPES[case].items() if "." not in key}


def dotted(case: str) -> dict[str, Any]:
    return {key: value for key, value in RECIPES[case].items() if "." in key}


def outcome(recipe: dict[str, Any], change: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Losses, weights and scores of a run."""
    result = imbalance_vlm.run(recipe, change, runs=runs, device="cpu")
    assert isinstance(result, RunResult)
    lines = (result.path / "metrics.jsonl").read_text().splitlines()
    weights = load_file(result.path / "head.safetensors").items()
    return {
        "losses": [json.loads(line)["loss"] for line in lines],
        "weights": {key: value.flatten().tolist() for key, value in weights if value.is_floating_point()},
        "nll": result.scores["nll"],
        "trainable": result.record["cost"]["trainable_parameters"],
    }


def program(out: Path) -> None:
    """What each of the two processes does."""
    from torch.distributed import fsdp

    assert join("cpu") == CPU
    state.STEPS_BETWEEN_VOTES = 1
    state.TRAINING_PER_WRITING = 0
    results = {case: run(case, out / case) for case in (*CASES, *ONLY_IN_TWO)}
    for case in RESUMED:
        results[f"{case}, stopped"] = interrupted(case, out / f"{case}, stopped", 4)
    sharded: list[str] = []
    fully_shard = fsdp.fully_shard

    def recorded(module: nn.Module, **settings: Any) -> Any:
        sharded.append(type(module).__name__)
        return fully_shard(module, **settings)

    fsdp.fully_shard = recorded
    for case, recipe in json.loads((out / "recipes.json").read_text()).items():
        sharded.clear()
        results[f"recipe, {case}"] = outcome(recipe, dotted(case), out / "runs" / case) | {"sharded": len(sharded)}
    plain = {key: value for key, value in recipe.items() if key != "head"}
    with pytest.raises(InputError) as refused:
        imbalance_vlm.run(
            plain | {"tuning": "linear_probe"}, {"training.shard": True}, runs=out / "runs" / "probe", device="cpu"
        )
    results["refused"] = str(refused.value)
    (out / f"{process_group().rank}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_clip: str) -> list[dict[str, Any]]:
    """The results of each of two processes."""
    out = tmp_path_factory.mktemp("two")
    (out / "recipes.json").write_text(json.dumps({case: recipe_of(case, images, tiny_clip) for case in RECIPES}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "IMBALANCE_VLM_CACHE": str(out / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out)],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        output = [process.communicate(timeout=240)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(text[-3000:] for text in output)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def assert_same(got: dict[str, Any], wanted: dict[str, Any], exact: bool = False) -> None:
    close: dict[str, float] = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(got["losses"], wanted["losses"], **close)
    assert got["weights"].keys() == wanted["weights"].keys()
    for key, values in wanted["weights"].items():
        np.testing.assert_allclose(got["weights"][key], values, err_msg=key, **close)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_of_one(case: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    wanted = run(case, tmp_path)
    for process in two:
        assert_same(process[case], wanted)


@pytest.mark.parametrize("case", [*CASES, *ONLY_IN_TWO])
def test_both_processes_hold_the_same_weights(case: str, two: list[dict[str, Any]]) -> None:
    assert_same(two[0][case], two[1][case], exact=True)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_sharded_tower_trains_like_a_full_one(
    method: str, two: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got = two[0][f"pixels, {method}, sharded"]
    assert got["sharded"] > 0
    settings = ONLY_IN_TWO[f"pixels, {method}, sharded"][1]
    monkeypatch.setitem(CASES, "full tensors", (lambda: tuned(method), settings))
    assert_same(got, run("full tensors", tmp_path))


@pytest.mark.parametrize("case", RESUMED)
def test_two_processes_resume_within_an_epoch(case: str, two: list[dict[str, Any]]) -> None:
    for process in two:
        assert_same(process[f"{case}, stopped"], process[case], exact=True)


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_gives_the_same_in_two_processes_as_in_one(
    case: str, two: list[dict[str, Any]], images: Path, tiny_clip: str
) -> None:
    """With `training.shard`, which has no effect in one process, and with terms that compare with a frozen model."""
    wanted = outcome(recipe_of(case, images, tiny_clip), dotted(case), Path("alone"))
    for process in two:
        got = process[f"recipe, {case}"]
        assert_same(got, wanted)
        assert got["nll"] == pytest.approx(wanted["nll"], rel=1e-5)
        assert got["trainable"] == wanted["trainable"]
        assert (got["sharded"] > 0) == ("sharded" in case)


def test_sharding_without_a_trained_tower_is_refused(two: list[dict[str, Any]]) -> None:
    for process in two:
        assert "training.shard" in process["refused"]


if __name__ == "__main__":
    torch.set_num_threads(1)
    program(Path(sys.argv[1]))
