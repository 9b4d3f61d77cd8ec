"""A contact sheet of the largest and the smallest classes of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imbalance_vlm.errors import InputError
from imbalance_vlm.escapes import visible
from imbalance_vlm.files import write_atomically
from imbalance_vlm.verification.batch_inspection import load_image
from imbalance_vlm.verification.collection import Collection, ListedImage, collect
from imbalance_vlm.verification.report import outside

SIDE = 96
GAP = 6
LABEL = 220
INK, PAPER, BROKEN = (30, 30, 30), (255, 255, 255), (225, 205, 205)
FONT = 14


def show(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    classes: int = 5,
    images: int = 8,
    out: str | Path | None = None,
) -> Image.Image:
    """Draw the largest and the smallest classes, one row each, with name and count.

    Args:
        source: a recipe, a folder of class folders, a table or an archive; see `collect`.
        overrides: `key.path=value` strings.
        classes: number of largest and of smallest classes.
        images: number of images of each class, spread evenly over its list.
        out: PNG file to write; None writes none.

    Raises:
        InputError: as `collect`; no classes; `out` lies in the user's data.
    """
    if classes < 1 or images < 1:
        raise InputError(f"`classes` and `images` must be at least 1, got {classes} and {images}")
    collection = collect(source, overrides)
    if not collection.class_names:
        raise InputError(f"{collection.source} must hold class folders to be shown by class, and has none")
    path = outside(Path(out), collection.roots, "out") if out is not None else None
    sheet = draw(collection, classes, images)
    if path is not None:
        write_atomically(path, lambda temporary: sheet.save(temporary, "PNG"))
    return sheet


def draw(collection: Collection, classes: int, images: int) -> Image.Image:
    """The sheet: head classes, a line, tail classes; where there are few classes, all of them without a line."""
    counts = collection.counts(collection.main)
    order = np.argsort(-counts, kind="stable").tolist()
    head, tail = (order, []) if len(order) <= 2 * classes else (order[:classes], order[-classes:])
    rows_of: dict[int, list[ListedImage]] = {label: [] for label in [*head, *tail]}
    main = collection.main
    for image in collection.images:
        if image.split == main and image.label in rows_of:
            rows_of[image.label].append(image)
    step = SIDE + GAP
    divide = GAP if tail else 0
    size = (LABEL + images * step + GAP, (len(head) + len(tail)) * step + GAP + divide)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(FONT)
    for number, label in enumerate([*head, *tail]):
        top = GAP + number * step + (divide if number >= len(head) else 0)
        if tail and number == len(head):
            pen.line([(0, top - GAP), (size[0], top - GAP)], INK, 1)
        plural = "" if counts[label] == 1 else "s"
        caption = f"{_shortened(collection.class_names[label], pen, font)}\n{counts[label]:,} image{plural}"
        pen.multiline_text((GAP, top + SIDE // 2 - FONT), caption, INK, font)
        for column, image in enumerate(_spread(rows_of[label], images)):
            sheet.paste(thumbnail(image), (LABEL + column * step, top))
    return sheet


def _spread(listed: Sequence[ListedImage], count: int) -> list[ListedImage]:
    """At most `count` of the images, evenly spread over the list."""
    count = min(count, len(listed))
    return [listed[number * len(listed) // count] for number in range(count)]


def _shortened(name: str, pen: ImageDraw.ImageDraw, font: Any) -> str:
    """The name on one line, cut to the width of the label."""
    name = visible(name[:LABEL])  # no letter is narrower than a point
    while pen.textlength(name, font) > LABEL - 3 * GAP and len(name) > 1:
        name = f"{name.removesuffix('…')[:-1]}…"
    return name


def thumbnail(listed: ListedImage) -> Image.Image:
    """(SIDE, SIDE) with the complete image in it, or a box with a message where it cannot be read."""
    tile = Image.new("RGB", (SIDE, SIDE), PAPER)
    try:
        if listed.inspection is not None and listed.inspection.problem:
            raise ValueError(listed.inspection.problem)
        image = load_image(listed)
        scale = SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resampling = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        tile.paste(image.resize(size, resampling), ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    except Exception:  # decoders raise a dozen types, all of which mean the same here
        tile.paste(BROKEN, (0, 0, SIDE, SIDE))
        font = ImageFont.load_default(FONT)
        ImageDraw.Draw(tile).multiline_text((GAP, SIDE // 2 - FONT), "cannot\nbe read", INK, font)
    return tile
