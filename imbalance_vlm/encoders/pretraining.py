"""How long a model was pre-trained, which is another thing than on how much."""

from __future__ import annotations

import json
import re
from pathlib import Path

MINI_CLIP = Path(__file__).resolve().parents[1] / "assets" / "mini_clip"
OPENAI = 32 * 400_000_000
"""32 epochs over 400 million pairs (Radford et al., ICML 2021, section 2.5)."""
_UNITS = {"m": 10**6, "b": 10**9}


def samples_seen(encoder: str, pretrained: str | None) -> int | None:
    """Image-text pairs that a model saw in all of its pre-training, every epoch counted; None where nothing says.

    open_clip's tags say it themselves: in samples ("_s34b", 34 billion) or in epochs ("_e32") over their pairs.

    >>> samples_seen("ViT-B-32", "datacomp_m_s128m_b4k"), samples_seen("ViT-B-16", "laion400m_e32")
    (128000000, 13024000000)
    """
    tag = str(pretrained)
    if encoder == "mini-clip":
        file = MINI_CLIP / tag / "open_clip_config.json"
        found = json.loads(file.read_text(encoding="utf-8")).get("samples_seen") if file.is_file() else None
        return int(found) if found else None
    if tag == "openai":
        return OPENAI
    if said := re.search(r"_s(\d+)([mb])(_|$)", tag):
        return int(said[1]) * _UNITS[said[2]]
    if said := re.search(r"_e(\d+)$", tag):
        from imbalance_vlm.encoders.open_clip import PRETRAIN_PAIRS

        pairs = next((count for start, count in PRETRAIN_PAIRS.items() if tag.startswith(start)), None)
        return int(said[1]) * pairs if pairs else None
    return None
