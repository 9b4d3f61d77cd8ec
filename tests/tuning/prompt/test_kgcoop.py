"""KgCoOp against its equation."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from imbalance_vlm.components import catalogue
from tests.tuning.prompt.text_models import (
    NAMES,
    context_of,
    cosines,
    head_of,
    images,
    objective,
    sentences,
    text_by_open_clip,
)


def test_kgcoop_has_its_own_sentence_for_textures() -> None:
    tuning = catalogue.PROMPTS.get("kgcoop").load()()
    on = context_of(templates=("{} texture.",))
    (anchor,) = tuning.regularizers(on)
    torch.testing.assert_close(anchor.frozen, sentences(NAMES, ["a photo of a {}, a type of texture."]).float())


@pytest.mark.parametrize(("target", "count"), [("template", 1), ("ensemble", 2)])
def test_kgcoop_adds_eight_distances_to_the_sentences(target: str, count: int) -> None:
    head = head_of("kgcoop", target=target)
    features, targets = images()
    value = objective("kgcoop", head, target=target)(features, targets)
    text = text_by_open_clip(NAMES, head.context.expand(3, 3, 16))
    frozen = sentences(NAMES, context_of().templates[:count])
    distance = sum(1 - float((t @ w).detach()) for t, w in zip(text, frozen, strict=True)) / 3
    expected = float(F.cross_entropy(cosines(features, text), targets).detach()) + 8.0 * distance
    assert float(value.detach()) == pytest.approx(expected, abs=1e-6)
    assert distance > 0.05
