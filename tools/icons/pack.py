"""Writes the files of the embedded datasets; the same input gives the same bytes.

    classes.json     names in label order, and for each split the labels' run lengths and the drawings' places; of
                     some sets, what else describes them: templates, flips, test_only, group_counts
    grey.bin         drawings without colour: 4 bits per pixel, two pixels per byte, zlib over all of them
    colour.bin       drawings with colour: 4 bits per channel, packed in the same way
    corpus.bin       of Icons-LT: the distinct perceptual hashes of the pre-training corpus, sorted, by column, zlib
    ATTRIBUTION      set, author, licence, link and number of drawings of every set in use

Places number the grey drawings first and then the coloured ones.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tools.icons.source import PACKAGE, VERSION, IconSet
from tools.icons.split import Classes


def pack(folder: Path, images: np.ndarray, classes: Classes, **described: Any) -> None:
    """Write classes.json, with what else describes the set, grey.bin and colour.bin.

    `images` (N, 32, 32, 3) has 16 levels per channel.
    """
    rows = np.concatenate(list(classes.rows.values()))
    coloured = (images[rows] != images[rows][..., :1]).any(axis=(1, 2, 3))
    grey_rows, colour_rows = rows[~coloured], rows[coloured]
    place = {int(row): at for at, row in enumerate([*grey_rows, *colour_rows])}
    index = {
        "names": classes.names,
        "grey": len(grey_rows),
        "colour": len(colour_rows),
        "counts": {split: np.bincount(labels).tolist() for split, labels in classes.labels.items()},
        "places": {split: [place[int(row)] for row in chosen] for split, chosen in classes.rows.items()},
        **described,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "classes.json").write_text(json.dumps(index, separators=(",", ":"), ensure_ascii=True))
    (folder / "grey.bin").write_bytes(zlib.compress(nibbles(images[grey_rows][..., 0]), 9))
    (folder / "colour.bin").write_bytes(zlib.compress(nibbles(images[colour_rows]), 9))


def nibbles(levels: np.ndarray) -> bytes:
    """Two pixels per byte, the first in the high half; levels are multiples of 17."""
    flat = levels.reshape(-1) // 17
    return (flat[0::2] << 4 | flat[1::2]).astype(np.uint8).tobytes()


def pack_hashes(folder: Path, hashes: np.ndarray) -> None:
    """Write corpus.bin from (N, 2) uint64 hashes: byte plane by byte plane, which compresses best."""
    planes = np.unique(hashes, axis=0).astype("<u8").view(np.uint8).reshape(-1, 16).T
    (folder / "corpus.bin").write_bytes(zlib.compress(np.ascontiguousarray(planes).tobytes(), 9))


def attribution(
    title: str, sets: Sequence[IconSet], shipped: Counter[str], pretraining: Counter[str] | None = None
) -> str:
    """The ATTRIBUTION file: sets whose drawings are in the package, then sets that mini-clip was trained on."""
    lines = [
        f"{title} is made of drawings from the icon sets below, as collected in the npm package {PACKAGE} {VERSION}.",
        "The drawings were rendered at 32 x 32 pixels on white, and reduced to 16 levels per channel; they keep the",
        "licences of their authors. Columns: set, title, author, licence, licence text, home page, drawings.",
        "",
        f"Drawings that ship (images of {title})",
        "",
    ]
    lines += [_line(icon_set, shipped) for icon_set in sets if shipped[icon_set.prefix]]
    if pretraining is not None:
        lines += ["", "Drawings that mini-clip was pre-trained on (not shipped)", ""]
        lines += [_line(icon_set, pretraining) for icon_set in sets if pretraining[icon_set.prefix]]
    return "\n".join(lines) + "\n"


def _line(icon_set: IconSet, used: Counter[str]) -> str:
    fields = (
        icon_set.prefix, icon_set.title, icon_set.author, icon_set.license, icon_set.license_url, icon_set.url,
        str(used[icon_set.prefix]),
    )  # fmt: skip
    return "\t".join(field or "-" for field in fields)
