"""What is known of how long a model was pre-trained."""

from __future__ import annotations

import pytest

from imbalance_vlm.encoders.pretraining import samples_seen


@pytest.mark.parametrize(
    ("encoder", "tag", "billions"),
    [
        ("ViT-B-32-quickgelu", "openai", 12.8),
        ("ViT-B-32", "laion400m_e32", 13.024),
        ("ViT-B-32", "laion2b_e16", 36.8),
        ("ViT-B-32", "laion2b_s34b_b79k", 34),
        ("ViT-L-14", "laion2b_s32b_b82k", 32),
        ("ViT-B-32", "datacomp_s_s13m_b4k", 0.013),
        ("ViT-B-32", "datacomp_m_s128m_b4k", 0.128),
        ("ViT-B-16", "datacomp_l_s1b_b8k", 1),
        ("ViT-L-14", "datacomp_xl_s13b_b90k", 13),
        ("mini-clip", "icons-tiny", 0.000512),
    ],
)
def test_tags_say_what_was_seen(encoder: str, tag: str, billions: float) -> None:
    assert samples_seen(encoder, tag) == pytest.approx(billions * 1e9)


@pytest.mark.parametrize("tag", [None, "random", "webli", "dfn2b", "/weights/my_b32.pt", "mine_e32"])
def test_others_say_nothing(tag: str | None) -> None:
    assert samples_seen("ViT-B-32", tag) is None
