"""Classes that a tokenizer reads as the same text are refused before training, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.encoders.prompted_text import PromptedText

LONG = "small mammal with a very long descriptive scientific name given in full by the museum"
AFTER = "differ at most after the 16 tokens"
CASE = "differ at most in case, accents or punctuation"


@pytest.fixture(scope="module")
def encoder() -> Any:
    return create_encoder("mini-clip", pretrained="icons-tiny")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([f"{LONG} black", "cat", f"{LONG} white"], AFTER),
        (["cat", "dog", "Cat"], CASE),
        (["a  b", "dog", "a b"], CASE),
        (["red_fox", "dog", "red fox"], CASE),
    ],
)
def test_two_classes_with_the_same_tokens_are_named(encoder: Any, names: list[str], reason: str) -> None:
    with pytest.raises(InputError) as error:
        encoder.text_features(names, ["a photo of a {}."])
    for words in (f"class 0 ({names[0]!r})", f"class 2 ({names[2]!r})", reason):
        assert words in str(error.value)


def test_one_template_that_tells_the_classes_apart_is_enough(encoder: Any) -> None:
    long_template = f"{LONG}: {{}}"
    with pytest.raises(InputError, match="as the same text"):
        encoder.text_features(["cat", "dog"], [long_template])
    assert torch.isfinite(encoder.text_features(["cat", "dog"], [long_template, "{}"])).all()


def test_prompts_of_equal_classes_are_refused(encoder: Any) -> None:
    prompted = PromptedText(encoder, ["cat", "dog", "CAT"])
    with pytest.raises(InputError, match=r"class 0 \('cat'\) and class 2 \('CAT'\) as the same text"):
        prompted.check(2)
