"""The training loop: batches in parts, non-finite losses, torch.compile, and settings that cannot be combined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.gradients.base import Gradient
from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.heads.linear import LinearHead
from imbalance_vlm.training.state import EpochLoss
from tests.training.tiny_training import FEATURES, LABELS, fit, losses, sampler, weights

# -- a batch in parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [2, 3, 8, 100])
@pytest.mark.parametrize("loss", ["cross_entropy", "logit_adjustment", "focal", "ldam"])
def test_accumulated_gradient_is_that_of_the_whole_batch(loss: str, accumulate: int, tmp_path: Path) -> None:
    wanted = weights(tmp_path / "whole", loss)
    got = weights(tmp_path / "parts", loss, accumulate=accumulate)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_no_part_of_a_batch_is_empty(tmp_path: Path) -> None:
    sizes: list[int] = []

    class NotesSizes(Loss):
        def per_sample(self, logits: Tensor, targets: Tensor) -> Tensor:
            sizes.append(len(targets))
            return nn.functional.cross_entropy(logits, targets, reduction="none")

    fit(tmp_path, NotesSizes(LongTail(np.bincount(LABELS))), accumulate=4, epochs=1)
    assert sizes == [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_gradient_transform_needs_whole_batches(tmp_path: Path) -> None:
    class Half(Gradient):
        @property
        def is_linear(self) -> bool:
            return False

    with pytest.raises(InputError, match=r"`training\.accumulate` must be 1 with a gradient transform \(Half\).*got 2"):
        fit(tmp_path, gradient=Half(), accumulate=2)


# -- non-finite losses -----------------------------------------------------------------------------------------------


class OverflowingHead(LinearHead):
    """Its embeddings of large features are infinite."""

    def embed(self, features: Tensor) -> Tensor:
        return super().embed(features * torch.where(features > 1e30, torch.inf, 1.0))


def test_non_finite_loss_names_the_batch(tmp_path: Path) -> None:
    features = FEATURES.copy()
    features[13] = 1e31
    with pytest.raises(InputError) as caught:
        fit(tmp_path, head=OverflowingHead, features=features)
    order = sampler(torch.from_numpy(LABELS))
    steps = [batch for epoch in range(3) for batch in order.epoch(epoch, 3).split(8)]
    first = next(number for number, rows in enumerate(steps) if 13 in rows)
    names = ", ".join(f"image_{row}.png" for row in steps[first].tolist()[:5])
    assert f"in epoch {first // 3 + 1} at learning rate" in str(caught.value)
    assert f"in step {first % 3 + 1}, whose batch begins with {names}; lower" in str(caught.value)


def test_non_finite_loss_is_traced_to_its_step_when_checked_later() -> None:
    """As on a GPU, where a check at every step would force a device sync."""
    source = FeatureSource([FEATURES], LABELS, torch.device("cpu"), "image_{}.png".format)
    epoch_loss = EpochLoss(source)
    for number, value in enumerate([1.0, 2.0, float("inf"), float("nan"), 1.0]):
        epoch_loss.add([torch.tensor(value)], [torch.tensor([number, number + 1])])
    with pytest.raises(InputError, match=r"in step 3, whose batch begins with image_2\.png, image_3\.png;"):
        epoch_loss.check(epoch=0, rate=0.1)


# -- torch.compile ---------------------------------------------------------------------------------------------------


def test_compiled_training_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_training_continues_where_torch_compile_fails(
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
    notes = capsys.readouterr().err
    assert notes.count("continuing without torch.compile, InternalTorchDynamoError: no compiler is here") == 1
