"""The start of a prompt."""

from __future__ import annotations

from imbalance_vlm.tuning.prompt.settings import Prompt


def test_random_and_null_mean_a_start_without_words() -> None:
    assert [Prompt(init=init).words for init in ("random", None, "a photo of")] == [None, None, "a photo of"]
