"""How much data a model was pre-trained on, and for how long, according to the name of its weights."""

from __future__ import annotations

import re
from pathlib import Path

from imbalance_vlm.files import read_json

MINI_CLIP = Path(__file__).resolve().parents[1] / "assets" / "mini_clip"
"""The folder of the embedded models, one folder per tag."""

PRETRAIN_PAIRS: dict[str, int] = {
    "openai": 400_000_000,
    "laion400m": 407_000_000,
    "laion2b": 2_300_000_000,
    "datacomp_s": 1_400_000,
    "datacomp_m": 14_000_000,
    "datacomp_l": 140_000_000,
    "datacomp_xl": 1_400_000_000,
}
"""Image-text pairs by the beginning of open_clip's tags (as published; for DataComp, the pool after filtering)."""

OPENAI_SAMPLES = 32 * 400_000_000
"""32 epochs over 400 million pairs (Radford et al., ICML 2021, section 2.5)."""

_UNITS = {"m": 10**6, "b": 10**9}


def pretrain_pairs(pretrained: str | None) -> int | None:
    """Distinct image-text pairs that the weights of a tag were trained on; None if unknown.

    >>> pretrain_pairs("datacomp_xl_s13b_b90k")
    1400000000
    """
    matches = [start for start in PRETRAIN_PAIRS if str(pretrained).startswith(start)]
    return PRETRAIN_PAIRS[max(matches, key=len)] if matches else None


def samples_seen(encoder: str, pretrained: str | None) -> int | None:
    """Image-text pairs seen in pre-training, every epoch counted; None if unknown.

    open_clip's tags give it in samples ("_s34b" is 34 billion) or in epochs ("_e32") over their pairs.

    >>> samples_seen("ViT-B-32", "datacomp_m_s128m_b4k"), samples_seen("ViT-B-16", "laion400m_e32")
    (128000000, 13024000000)
    """
    tag = str(pretrained)
    if encoder == "mini-clip":
        return read_json(MINI_CLIP / tag / "open_clip_config.json").get("samples_seen")
    if tag == "openai":
        return OPENAI_SAMPLES
    if samples := re.search(r"_s(\d+)([mb])(_|$)", tag):
        return int(samples[1]) * _UNITS[samples[2]]
    pairs = pretrain_pairs(tag)
    if pairs and (epochs := re.search(r"_e(\d+)$", tag)):
        return int(epochs[1]) * pairs
    return None
