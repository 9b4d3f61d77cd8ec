"""Contracts of tunings, over everything registered, and seen to fail on tunings that are wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbalance_vlm import create_encoder
from imbalance_vlm.components import catalogue
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.features import CroppedView
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.heads.text import TextHead
from imbalance_vlm.tuning.base import Tuning, TuningContext
from imbalance_vlm.tuning.linear_probe import LinearProbe
from tests.tuning import tuning_contracts
from tests.tuning.tuning_contracts import CONTRACTS, Make

NAMES = ("red apple", "green_leaf", "blue car", "white cup")
SECTIONS = [
    {"name": entry.name} | ({"method": method} if method else {})
    for entry in catalogue.TUNINGS
    for method in (entry.methods.names() if entry.methods else [""])
]


@pytest.fixture(scope="module")
def encoder(tiny_clip: str) -> Encoder:
    """Shared by all tests of this file, as the runs of a study share theirs."""
    encoder = create_encoder(tiny_clip)
    encoder.module.requires_grad_(False)
    encoder.width("embedding")
    return encoder


def make_on(encoder: Encoder, tuning: Callable[[], Tuning]) -> Make:
    context = TuningContext(
        encoder=encoder,
        kind="embedding",
        class_names=NAMES,
        novel_names=(),
        templates=("a photo of a {}.", "{}"),
        device=torch.device("cpu"),
        epochs=1,
        seed=0,
        flips=True,
        text_features=encoder.text_features,
    )

    def make() -> tuple[Tuning, TuningContext, Callable[[], Head]]:
        fresh = tuning()
        text = encoder.text_features(NAMES, ("{}",))
        return fresh, context, (lambda: CosineHead(16, len(NAMES)) if fresh.trains else TextHead(text))

    return make


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: " ".join(section.values()))
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_tuning_keeps_the_contract(contract: Any, section: dict[str, str], encoder: Encoder) -> None:
    contract(make_on(encoder, lambda: catalogue.TUNINGS.make(section, {})))


# -- tunings that are wrong on purpose -------------------------------------------------------------------------------


class EncodesAnImage(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        context.encoder.image_features(torch.zeros(1, 3, 16, 16), "embedding")
        return plain()


class LeavesAHook(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        context.encoder.module.register_forward_hook(lambda *_: None)
        return plain()


class LeavesItFrozen(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        context.encoder.module.requires_grad_(False)
        return plain()


class ClosesOnce(LinearProbe):
    head_of_run: Head | None = None

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        self.head_of_run = plain()
        return self.head_of_run

    def close(self) -> None:
        del self.head_of_run


class ForgetsAParameter(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        head = plain()
        head.shift = nn.Parameter(torch.zeros(3))
        return head

    def parameters(self, head: Head) -> list[nn.Parameter]:
        return super().parameters(head)[1:]


class HasAnUnusedParameter(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        head = plain()
        head.unused = nn.Parameter(torch.ones(3))
        return head


class ShiftedHead(CosineHead):
    """A cosine head whose logits have a random shift that is in no state."""

    def __init__(self) -> None:
        super().__init__(16, len(NAMES))
        self.shift = torch.randn(len(NAMES))

    def classify(self, embeddings: Tensor) -> Tensor:
        return super().classify(embeddings) + self.shift


class UnsavedRandomness(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        return ShiftedHead()


class ChangesTheBase(LinearProbe):
    """It restores the encoder when it is closed, and not for `base`."""

    scaled: nn.Parameter | None = None

    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        self.scaled = context.encoder.module.visual.proj  # type: ignore[union-attr, assignment]
        self.scaled.data *= 2  # type: ignore[union-attr]
        return plain()

    def close(self) -> None:
        if self.scaled is not None:
            self.scaled.data /= 2
            self.scaled = None


class OwnRandomness(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        head = plain()
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            next(head.parameters()).normal_(generator=generator)
        return head


class NewViews(LinearProbe):
    calls = 0

    def transforms(self, context: TuningContext) -> list[View]:
        self.calls += 1
        return [CroppedView(context.encoder.preprocessing, self.calls, 0.5, False)]


class HeadThatIsNotCopied(CosineHead):
    def __deepcopy__(self, memo: dict[int, Any]) -> HeadThatIsNotCopied:
        return self


class SharesCopies(LinearProbe):
    def head(self, context: TuningContext, plain: Callable[[], Head]) -> Head:
        return HeadThatIsNotCopied(16, len(NAMES))


BAD: dict[type[Tuning], Callable[..., None]] = {
    EncodesAnImage: tuning_contracts.making_encodes_no_images,
    LeavesAHook: tuning_contracts.closing_restores_the_encoder,
    LeavesItFrozen: tuning_contracts.closing_restores_the_encoder,
    ClosesOnce: tuning_contracts.closing_is_always_possible,
    ForgetsAParameter: tuning_contracts.trains_its_parameters_and_nothing_else,
    HasAnUnusedParameter: tuning_contracts.trains_its_parameters_and_nothing_else,
    UnsavedRandomness: tuning_contracts.saved_state_gives_the_same_logits,
    ChangesTheBase: tuning_contracts.base_is_the_untouched_encoder,
    OwnRandomness: tuning_contracts.the_seed_decides_the_start,
    NewViews: tuning_contracts.views_are_functions_of_the_image,
    SharesCopies: tuning_contracts.copies_are_independent,
}


@pytest.mark.parametrize(("wrong", "contract"), BAD.items())
def test_each_contract_fails_on_a_tuning_that_breaks_it(wrong: type[Tuning], contract: Any, tiny_clip: str) -> None:
    encoder = create_encoder(tiny_clip)
    contract(make_on(encoder, LinearProbe))
    with pytest.raises(AssertionError):
        contract(make_on(encoder, wrong))


def test_every_contract_is_seen_to_fail() -> None:
    assert set(BAD.values()) == set(CONTRACTS)
