"""What the names of weights tell about their pre-training."""

from __future__ import annotations

import pytest

from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.pretraining import pretrain_pairs, samples_seen


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
def test_samples_of_tags(encoder: str, tag: str, billions: float) -> None:
    assert samples_seen(encoder, tag) == pytest.approx(billions * 1e9)


@pytest.mark.parametrize("tag", [None, "random", "webli", "dfn2b", "/weights/my_b32.pt", "mine_e32"])
def test_samples_of_others_are_unknown(tag: str | None) -> None:
    assert samples_seen("ViT-B-32", tag) is None


@pytest.mark.parametrize(
    ("tag", "pairs"),
    [("openai", 400e6), ("laion400m_e32", 407e6), ("datacomp_xl_s13b_b90k", 1.4e9), ("webli", None), (None, None)],
)
def test_pairs_of_tags(tag: str | None, pairs: float | None) -> None:
    assert pretrain_pairs(tag) == pairs


def test_an_encoder_carries_both_numbers() -> None:
    encoder = create_encoder("mini-clip", pretrained="icons-tiny")
    assert (encoder.pretrain_pairs, encoder.samples_seen) == (6100, 512_000)
    image_only = create_encoder("timm:test_vit", pretrained="random")
    assert (image_only.pretrain_pairs, image_only.samples_seen) == (None, None)
