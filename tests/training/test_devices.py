"""Two processes on the CPU train as one does. This file is also the program that they run."""

from __future__ import annotations

import copy
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
from imbalance_vlm import InputError, LongTail, assembly, catalogue
from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.data.dataset import ArrayImages, Split
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training import devices, loop
from imbalance_vlm.training.loop import steps_per_epoch, train
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
    """A linear head whose features fall away at random."""

    def embed(self, features: Tensor) -> Tensor:
        return F.dropout(super().embed(features), 0.5, self.training)


class MeanNorm(Regularizer):
    """Looks at the whole batch: the length of its mean, and at what it saw before."""

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
    """Not linear in the gradient: half a batch's says nothing of the whole one's."""

    def start(self, parameters: Any) -> None:
        self.trained = list(parameters.values())

    def backward(self, loss: Tensor, seen: StepOutputs) -> None:
        for parameter, gradient in zip(self.trained, torch.autograd.grad(loss, self.trained), strict=True):
            parameter.grad = gradient.sign() * 0.01


def linear(loss: str = "cross_entropy", head: type[LinearHead] = LinearHead, **settings: Any) -> tuple[Objective, Any]:
    features = np.random.default_rng(0).normal(size=(len(LABELS), 6)).astype(np.float32)
    made = create_loss(loss, LongTail(np.bincount(LABELS)), **settings)
    return Objective(head(6, 3, normalise=False), made), FeatureSource([features], LABELS, CPU)


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
    made = METHODS[method]().apply(net, 3)
    head: Head = TowerHead(encoder, made, LinearHead(8, 3), "embedding")
    for parameter in head.parameters():  # up-projections start at zero, and with them all gradients below
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    if sharded:
        devices.shard(net.visual, head)
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
ALONE_IN_TWO = {
    "dropout": (lambda: linear(head=Dropped), {}),
    "pixels, full, sharded": (lambda: tuned("full", sharded=True), {"clip_grad_norm": 1.0}),
    "pixels, lora, sharded": (lambda: tuned("lora", sharded=True), {}),
}


def run(case: str, folder: Path, stop_at: int | None = None, **more: Any) -> dict[str, Any]:
    """Losses of two epochs, and the weights after them; stopped before a step, the loss of which is never seen."""
    make, settings = (CASES | ALONE_IN_TWO)[case]
    torch.manual_seed(3)
    objective, source = make()
    plan = {"epochs": 2, "batch_size": 8} | settings | more
    parameters = [parameter for parameter in objective.head.parameters() if parameter.requires_grad]
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=0.01)
    if (
        case not in LINEAR
    ):  # a tower's key biases have no gradient but rounding errors, which Adam makes as large as any
        optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
    steps = steps_per_epoch(source, plan["batch_size"])
    schedule = catalogue.SCHEDULES.get("cosine").load()(optimizer, plan["epochs"], steps)
    sampler = catalogue.SAMPLERS.get("instance").load()(source.labels, 0)
    folder.mkdir(parents=True, exist_ok=True)
    update = schedule.step_update

    def stopping(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt
        update(step)

    schedule.step_update = stopping
    trained = train(objective, source, sampler, optimizer, schedule, folder, checkpoint_seconds=0.0, **plan)
    state = devices.whole(objective.state_dict())
    parts = sum(devices.is_sharded(parameter) for parameter in parameters)
    return {
        "losses": [row["loss"] for row in trained.history],
        "weights": {key: value.flatten().tolist() for key, value in state.items() if value.is_floating_point()},
        "sharded": parts,
    }


def interrupted(case: str, folder: Path, stop_at: int) -> dict[str, Any]:
    try:
        run(case, folder, stop_at)
    except KeyboardInterrupt:
        return run(case, folder)
    raise AssertionError("it was not stopped")


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
    "promptsrc": {"tuning": {"name": "prompt", "method": "promptsrc", "depth": 2, "mean": 2.0}, "head": "text"},
}
"""Whole runs, each behind the other in one process: the next finds a tower in one piece."""


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
    assert devices.start("cpu") == CPU
    loop.AGREE_EVERY = 1
    loop.WRITING_SHARE = 0
    found = {case: run(case, out / case) for case in (*CASES, *ALONE_IN_TWO)}
    for case in ("linear", "dropout", "gaussian_clouded", "pixels, full, sharded"):
        found[f"{case}, stopped"] = interrupted(case, out / f"{case}, stopped", 4)
    parts: list[int] = []

    def spread(tower: nn.Module, head: nn.Module) -> None:
        devices.shard(tower, head)
        parts.append(sum(map(devices.is_sharded, head.parameters())))

    assembly.shard = spread  # type: ignore[attr-defined]
    for case, recipe in json.loads((out / "recipes.json").read_text()).items():
        parts.clear()
        found[f"recipe, {case}"] = outcome(recipe, dotted(case), out / "runs" / case) | {"sharded": sum(parts)}
    (out / f"{devices.current().rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_clip: str) -> list[dict[str, Any]]:
    """What each of two processes found."""
    out = tmp_path_factory.mktemp("two")
    (out / "recipes.json").write_text(json.dumps({case: recipe_of(case, images, tiny_clip) for case in RECIPES}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    given |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    given |= {"GLOO_SOCKET_IFNAME": "lo", "IMBALANCE_VLM_CACHE": str(out / "cache")}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(out)],
            env=os.environ | given | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=240)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n\n".join(text[-3000:] for text in said)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def same(found: dict[str, Any], wanted: dict[str, Any], exact: bool = False) -> None:
    close: dict[str, float] = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(found["losses"], wanted["losses"], **close)
    assert found["weights"].keys() == wanted["weights"].keys()
    for key, values in wanted["weights"].items():
        np.testing.assert_allclose(found["weights"][key], values, err_msg=key, **close)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_of_one(case: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    wanted = run(case, tmp_path)
    for process in two:
        same(process[case], wanted)


@pytest.mark.parametrize("case", [*CASES, *ALONE_IN_TWO])
def test_both_processes_hold_the_same_weights(case: str, two: list[dict[str, Any]]) -> None:
    same(two[0][case], two[1][case], exact=True)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_tower_in_parts_is_trained_as_a_whole_one(method: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    found = two[0][f"pixels, {method}, sharded"]
    assert found["sharded"] > 0
    settings = ALONE_IN_TWO[f"pixels, {method}, sharded"][1]
    CASES["whole"] = (lambda: tuned(method), settings)
    try:
        same(found, run("whole", tmp_path))
    finally:
        del CASES["whole"]


@pytest.mark.parametrize("case", ["linear", "dropout", "gaussian_clouded", "pixels, full, sharded"])
def test_two_processes_stopped_within_an_epoch_go_on(case: str, two: list[dict[str, Any]]) -> None:
    for process in two:
        same(process[f"{case}, stopped"], process[case], exact=True)


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_gives_in_two_processes_what_it_gives_in_one(
    case: str, two: list[dict[str, Any]], images: Path, tiny_clip: str
) -> None:
    """With `training.shard`, which does nothing in one process, and with terms that compare with a frozen model."""
    wanted = outcome(recipe_of(case, images, tiny_clip), dotted(case), Path("alone"))
    for process in two:
        found = process[f"recipe, {case}"]
        same(found, wanted)
        assert found["nll"] == pytest.approx(wanted["nll"], rel=1e-5)
        assert found["trainable"] == wanted["trainable"]
        assert (found["sharded"] > 0) == ("sharded" in case)


def test_a_recipe_that_spreads_what_is_not_trained_is_refused() -> None:
    objective, _ = linear()
    optimizer = torch.optim.SGD(objective.head.parameters(), lr=1.0)
    step = loop._Step(objective, optimizer, devices.Devices(0, 2), None, False)
    with pytest.raises(InputError, match=r"`training\.shard` must be false where no tower is trained"):
        step.check(1, False, shard=True)


def test_each_process_drops_at_its_own_places() -> None:
    streams = [devices.LocalRandom(rank) for rank in range(2)]
    shared = torch.get_rng_state()
    drawn = []
    for stream in streams:
        with stream.use():
            drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), shared)


# -- parts of it, in one process -------------------------------------------------------------------------------------


def test_alone_nothing_is_started() -> None:
    assert devices.start("auto") is None
    assert devices.current() == devices.Devices()
    module = nn.Sequential(nn.Linear(2, 2))
    before = copy.deepcopy(module.state_dict())
    devices.shard(module)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_one_device_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="`device` must be auto, cuda or cpu for 2 processes.*'cuda:1'"):
        devices.start("cuda:1")


def test_several_processes_without_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="2 processes need accelerate: pip install"):
        devices.start("cpu")


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_parts_of_a_batch_are_the_batch(count: int) -> None:
    rows = torch.arange(count) + 10
    parts = [devices.Devices(rank, 3).part(rows) for rank in range(3)]
    assert all(len(part) for part in parts), "a process without images still takes part"
    assert torch.cat([part for part in parts if count >= 3 or int(part[0]) >= 10])[:count].tolist()[:1] == [10]
    if count >= 3:
        assert torch.cat(parts).tolist() == rows.tolist()


def test_random_states_come_back(tmp_path: Path) -> None:
    import random

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]

    torch.save(devices.random_state(), tmp_path / "state.pt")
    first = draw()
    assert draw() != first
    devices.set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == first


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        RuntimeError("It is possible that dataloader's workers are out of shared memory."),
    ],
)
def test_memory_that_ran_out_says_what_to_change(error: Exception) -> None:
    said = r"training\.accumulate.*memory_gb.*encoder\.precision.*training\.batch_size"
    with pytest.raises(InputError, match=said), devices.memory_errors():
        raise error
    with pytest.raises(RuntimeError, match="something else"), devices.memory_errors():
        raise RuntimeError("something else")


def test_a_run_that_needs_too_much_memory_says_so_and_leaves_no_result(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(Objective, "forward", step)
        with pytest.raises(InputError, match=r"memory ran out.*training\.accumulate.*Tried to allocate 2 GiB"):
            imbalance_vlm.run(recipe, device="cpu")
    assert not list(Path("runs").rglob("result.json"))
    result = imbalance_vlm.run(recipe, device="cpu")
    assert isinstance(result, RunResult)


if __name__ == "__main__":
    torch.set_num_threads(1)
    program(Path(sys.argv[1]))
