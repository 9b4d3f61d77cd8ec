"""The loop: parts of a batch, checkpoints within an epoch, and what it says when things go wrong."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError, LongTail, catalogue, files
from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.training import loop
from imbalance_vlm.training.loop import Trained, steps_per_epoch, train

LABELS = np.array([0] * 12 + [1] * 5 + [2] * 2)  # 19: batches of 8, 8 and 3
FEATURES = np.random.default_rng(0).normal(size=(len(LABELS), 4)).astype(np.float32)


class Forgetful(LinearHead):
    """A linear head with dropout, from torch's global generator."""

    def embed(self, features: Tensor) -> Tensor:
        return nn.functional.dropout(super().embed(features), 0.5, self.training)


def fit(
    folder: Path,
    loss: str | Loss = "cross_entropy",
    head: type[LinearHead] = LinearHead,
    stop_at: int | None = None,
    features: Any = FEATURES,
    gradient: Gradient | None = None,
    **settings: Any,
) -> tuple[Objective, Trained]:
    """Three epochs; KeyboardInterrupt before step `stop_at`."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    made = create_loss(loss, LongTail(np.bincount(LABELS))) if isinstance(loss, str) else loss
    objective = Objective(head(4, 3, normalise=False), made, gradient=gradient)
    source = FeatureSource([features], LABELS, torch.device("cpu"), "image_{}.png".format)
    optimizer = torch.optim.AdamW(objective.head.parameters(), lr=0.05)
    plan: dict[str, Any] = {"epochs": 3, "batch_size": 8, "checkpoint_seconds": 0.0} | settings
    schedule = catalogue.SCHEDULES.get("cosine").load()(optimizer, plan["epochs"], steps_per_epoch(source, 8))
    update = schedule.step_update

    def stopping(step: int) -> None:
        if step == stop_at:
            raise KeyboardInterrupt
        update(step)

    schedule.step_update = stopping
    sampler = catalogue.SAMPLERS.get("class_balanced").load()(source.labels, 0)
    return objective, train(objective, source, sampler, optimizer, schedule, folder, **plan)


def weights(folder: Path, *args: Any, **settings: Any) -> Tensor:
    return fit(folder, *args, **settings)[0].head.layer.weight.detach()


def losses(folder: Path) -> list[float]:
    return [json.loads(row)["loss"] for row in (folder / "metrics.jsonl").read_text().splitlines()]


# -- a batch in parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 8, 100])
@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjustment", "focal", "ldam"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(loss: str, accumulate: int, tmp_path: Path) -> None:
    wanted = weights(tmp_path / "whole", loss)
    found = weights(tmp_path / "parts", loss, accumulate=accumulate)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_parts_are_as_many_as_asked_for_and_none_is_empty(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Diary(Loss):
        def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
            sizes.append(len(targets))
            return nn.functional.cross_entropy(logits, targets, reduction="none")

    fit(tmp_path, Diary(LongTail(np.bincount(LABELS))), accumulate=4, epochs=1)
    assert sizes == [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_a_gradient_transform_wants_whole_batches(tmp_path: Path) -> None:
    class Half(Gradient):
        pass

    with pytest.raises(InputError, match=r"`training\.accumulate` must be 1 with a gradient transform \(Half\).*got 2"):
        fit(tmp_path, gradient=Half(), accumulate=2)


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [1, 3, 5, 8])
@pytest.mark.parametrize("loss", ["cross_entropy", "gaussian_clouded", "seesaw", "paco"])
def test_stopped_before_any_step_it_goes_on_and_ends_the_same(loss: str, stop_at: int, tmp_path: Path) -> None:
    settings = {"ema": 0.9, "accumulate": 2, "clip_grad_norm": 1.0}
    wanted = weights(tmp_path / "through", loss, Forgetful, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "stopped", loss, Forgetful, stop_at, **settings)
    assert torch.equal(weights(tmp_path / "stopped", loss, Forgetful, **settings), wanted)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "through")


def test_it_goes_on_at_the_very_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=5)
    assert "resuming behind epoch 1 and 2 steps of the next" in capsys.readouterr().err


def test_checkpoints_come_as_often_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda path, state: written.append((state["epoch"], state["step"])))
    fit(tmp_path, checkpoint_seconds=1000.0)
    assert written == []
    fit(tmp_path)
    assert written == [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_slow_writing_leaves_more_time_between(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(loop.time, "monotonic", lambda: now)
    clock = loop._Clock(30.0, loop.Devices())

    def slow() -> None:
        nonlocal now
        now += 6.0

    now = 31.0
    assert clock.due(0)
    clock.time(slow)
    now += 100.0
    assert not clock.due(1), "6 seconds are a twentieth of 120"
    now += 21.0
    assert clock.due(2)


def test_a_checkpoint_of_an_earlier_version_is_left_alone(tmp_path: Path) -> None:
    torch.save({"epoch": 2}, tmp_path / "checkpoint.pt")
    assert len(fit(tmp_path)[1].history) == 3


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("how", ["system", "torch"])
def test_a_full_disk_leaves_the_last_checkpoint(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stop_at=4)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def half(state: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:1] . PytorchStreamWriter failed writing file data/0")

    with monkeypatch.context() as patch:
        if how == "system":
            patch.setattr(files.os, "fsync", full)
        else:
            patch.setattr(torch, "save", half)
        with pytest.raises(InputError, match=r"checkpoint\.pt.*free some space or choose another folder"):
            fit(tmp_path)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "metrics.jsonl"]
    wanted = weights(tmp_path / "through")
    assert torch.equal(weights(tmp_path), wanted)


def test_torch_itself_on_a_full_disk(tmp_path: Path) -> None:
    """What torch.save raises when the system lets it write no more is what the error is made from."""
    import resource
    import signal

    from imbalance_vlm.training.checkpoints import save_checkpoint

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(InputError, match=r"a\.pt cannot be written .*MB are free"):
            save_checkpoint(tmp_path / "a.pt", {"weights": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_the_batch(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[13] = np.nan
    with pytest.raises(InputError) as caught:
        fit(tmp_path, features=features)
    sampler = catalogue.SAMPLERS.get("class_balanced").load()(torch.from_numpy(LABELS), 0)
    steps = [epoch_rows for epoch in range(3) for epoch_rows in sampler.epoch(epoch, 3).split(8)]
    first = next(number for number, rows in enumerate(steps) if 13 in rows)
    named = ", ".join(f"image_{row}.png" for row in steps[first].tolist()[:5])
    assert f"in epoch {first // 3 + 1} at learning rate" in str(caught.value)
    assert f"in step {first % 3 + 1}, whose batch begins with {named}; lower" in str(caught.value)


def test_a_look_from_time_to_time_finds_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where a look at every step would make it wait."""
    source = FeatureSource([FEATURES], LABELS, torch.device("cpu"), "image_{}.png".format)
    head = LinearHead(4, 3)
    objective = Objective(head, create_loss("cross_entropy", LongTail(np.bincount(LABELS))))
    run = loop._Run(objective, None, torch.optim.SGD(head.parameters(), lr=1.0), source, tmp_path, loop.Devices())
    monkeypatch.setattr(run, "look", lambda: None)
    for number, value in enumerate([1.0, 2.0, float("inf"), float("nan"), 1.0]):
        run.add([torch.tensor(value)], [torch.tensor([number, number + 1])])
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"in step 3, whose batch begins with image_2\.png, image_3\.png;"):
        run.look()


# -- torch.compile ---------------------------------------------------------------------------------------------------


def test_compiled_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compiled(plain: Any) -> Any:
        def fast(features: Tensor) -> Any:
            calls.append(len(features))
            return plain(features)

        return fast

    wanted = weights(tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compiled)
    assert torch.equal(weights(tmp_path / "compiled", compile=True), wanted)
    assert calls == [8, 8, 3] * 3


def test_what_cannot_be_compiled_goes_on_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._dynamo.exc import InternalTorchDynamoError

    def compiled(plain: Any) -> Any:
        def broken(features: Tensor) -> Any:
            raise InternalTorchDynamoError("no compiler is here")

        return broken

    wanted = weights(tmp_path / "plain")
    monkeypatch.setattr(torch, "compile", compiled)
    assert torch.equal(weights(tmp_path / "compiled", compile=True), wanted)
    said = capsys.readouterr().err
    assert said.count("going on without torch.compile, InternalTorchDynamoError: no compiler is here") == 1
