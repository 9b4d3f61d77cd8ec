"""The text anchor against loops from its equation, and how it is made from the text side of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.balancing.regularizers.text_anchor import EXTERNAL, TextAnchor, external_names, text_anchor
from imbalance_vlm.components import catalogue
from imbalance_vlm.errors import InputError


def unit_rows(count: int, seed: int) -> Tensor:
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=-1)


def outputs(text: Tensor | None, frozen: Tensor | None) -> StepOutputs:
    return StepOutputs(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, 3), text, frozen)


class ToyText:
    """The text side of a run whose features are unit rows, and whose tower reads names of at most 12 letters."""

    def __init__(self, class_names: Sequence[str], novel_names: Sequence[str] = (), seed: int = 0) -> None:
        self.class_names = class_names
        self.novel_names = novel_names
        self.templates = ("a photo of a {}.", "a {}.")
        self.seed = seed

    def frozen(self, names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return unit_rows(len(names), seed=10 * len(names) + len(templates))

    def learned(self, names: Sequence[str]) -> Callable[[], Tensor]:
        return lambda: unit_rows(len(names), seed=1000 + len(names))

    def fitting(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if len(name) <= 12]


BASE = ("cat", "sports_car", "goldfish")
NOVEL = ("dog", "Tench")


def distance_in_loops(learned: Tensor, frozen: Tensor, distance: str) -> float:
    total = 0.0
    for t, w in zip(learned.tolist(), frozen.tolist(), strict=True):
        differences = [a - b for a, b in zip(t, w, strict=True)]
        lengths = math.sqrt(sum(a * a for a in t)) * math.sqrt(sum(b * b for b in w))
        total += {
            "cos": 1 - sum(a * b for a, b in zip(t, w, strict=True)) / lengths,
            "l1": sum(map(abs, differences)),
            "mean_l1": sum(map(abs, differences)) / 4,
            "l2": sum(x * x for x in differences),
        }[distance]
    return total / len(learned)


every_distance = pytest.mark.parametrize("distance", ["cos", "l1", "mean_l1", "l2"])


@every_distance
def test_the_term_is_the_mean_distance_over_the_names(distance: Any) -> None:
    learned, frozen, other = unit_rows(3, 0), unit_rows(3, 1), unit_rows(3, 2)
    expected = distance_in_loops(learned, frozen, distance)
    assert expected > 0.1
    anchor = TextAnchor(distance=distance, weight=8.0)
    assert float(anchor(outputs(learned, frozen))) == pytest.approx(expected)
    assert float(anchor(outputs(frozen, frozen))) == pytest.approx(0, abs=1e-12)
    assert anchor.weight == 8.0
    own_target = TextAnchor(None, frozen, distance=distance)
    assert float(own_target(outputs(learned, other))) == pytest.approx(expected)
    other_names = TextAnchor(lambda: learned, frozen, distance=distance)
    assert float(other_names(outputs(other, other))) == pytest.approx(expected)


@every_distance
def test_the_gradient_is_finite_at_the_start(distance: Any) -> None:
    frozen, anchor = unit_rows(3, 1), TextAnchor(distance=distance)
    start = frozen.clone().requires_grad_()
    anchor(outputs(start, frozen)).backward()
    assert start.grad is not None
    assert bool(start.grad.isfinite().all())


def test_a_checkpoint_holds_nothing_of_it() -> None:
    assert TextAnchor(None, unit_rows(3, 0)).state_dict() == {}


@pytest.mark.parametrize(("target", "count"), [("template", 1), ("ensemble", 2)])
@pytest.mark.parametrize(("names", "expected"), [("novel", NOVEL), ("external", None)])
def test_other_names_are_anchored_by_what_the_run_offers(names: str, expected: Any, target: str, count: int) -> None:
    text = ToyText(BASE, NOVEL)
    section = {"name": "text_anchor", "names": names, "target": target, "distance": "l1", "external": 3}
    anchor = catalogue.REGULARIZERS.make(section, {"text": lambda _section: text})
    other_names = expected or external_names(text, 3)
    wanted = distance_in_loops(text.learned(other_names)(), text.frozen(other_names, text.templates[:count]), "l1")
    assert float(anchor(outputs(None, None))) == pytest.approx(wanted)


def test_base_names_use_the_features_of_the_step() -> None:
    text, learned, frozen = ToyText(BASE), unit_rows(3, 0), unit_rows(3, 1)
    ensemble = text_anchor(text, distance="l2")
    assert float(ensemble(outputs(learned, frozen))) == pytest.approx(distance_in_loops(learned, frozen, "l2"))
    template = text_anchor(text, target="template", distance="l2")
    wanted = distance_in_loops(learned, text.frozen(BASE, text.templates[:1]), "l2")
    assert float(template(outputs(learned, frozen))) == pytest.approx(wanted)


def test_external_names_are_the_same_for_every_run_and_short_enough() -> None:
    names = external_names(ToyText(BASE, NOVEL), 100)
    assert names[:4] == ["pickup truck", "acorn", "lampshade", "starfish"]  # "Great Pyrenees dog" has 18 letters
    assert len(set(names)) == 100
    assert max(map(len, names)) <= 12
    assert names == external_names(ToyText(NOVEL, BASE, seed=1), 100)


def test_external_names_are_the_released_hundred() -> None:
    assert len(set(EXTERNAL)) == 100
    names = [open_clip.IMAGENET_CLASSNAMES[label] for label in EXTERNAL]
    assert names[:6] == ["pickup truck", "acorn", "lampshade", "Great Pyrenees dog", "starfish", "oxygen mask"]


@pytest.mark.parametrize(("names", "count"), [("novel", 81), ("base", 81), ("external", 80)])
def test_the_sentences_of_clip_come_before_the_first_of_the_dataset(names: str, count: int) -> None:
    text = ToyText(BASE, NOVEL)
    other_names = {"base": BASE, "novel": NOVEL, "external": external_names(text, 3)}[names]
    sentences = ([t("{}") for t in open_clip.OPENAI_IMAGENET_TEMPLATES] + [text.templates[0]])[:count]
    anchor = text_anchor(text, names=names, target="openai", distance="l1", external=3)  # type: ignore[arg-type]
    learned = text.learned(other_names)()
    wanted = distance_in_loops(learned, text.frozen(other_names, sentences), "l1")
    assert float(anchor(outputs(learned, None))) == pytest.approx(wanted)


def test_what_cannot_be_anchored_is_refused() -> None:
    with pytest.raises(InputError, match="learned, and this run learns none; set tuning to a method"):
        text_anchor(None)
    with pytest.raises(InputError, match=r"classes that are tested but not trained, got none; set data\.classes"):
        text_anchor(ToyText(BASE), names="novel")
    with pytest.raises(InputError, match=r"`external`.*at most \d+, the number of ImageNet names.*got 5000"):
        text_anchor(ToyText(BASE), names="external", external=5000)
    with pytest.raises(InputError, match="this run learns none"):
        TextAnchor()(outputs(None, unit_rows(3, 0)))
    with pytest.raises(InputError, match=r"`frozen` must have the shape .*\(3, 4\), got \(2, 4\)"):
        TextAnchor(None, unit_rows(2, 0))(outputs(unit_rows(3, 0), None))
