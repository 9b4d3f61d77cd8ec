"""Draws icons at 32 x 32 pixels on white with resvg, black where an icon says `currentColor`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from multiprocessing import get_context

import numpy as np
from PIL import Image

from tools.icons.source import Drawing

SIZE = 32
_BLANK = np.full((SIZE, SIZE, 3), 255, np.uint8)


def svg(drawing: Drawing) -> str:
    """The icon as an SVG document; one that is not square is centred in a square, so that nothing is stretched."""
    left, top, width, height = drawing.box
    side = max(width, height)
    view = f"{left - (side - width) / 2:g} {top - (side - height) / 2:g} {side:g} {side:g}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIZE}" height="{SIZE}" viewBox="{view}" color="#000">{drawing.body}</svg>'
    )


def render(drawing: Drawing) -> np.ndarray:
    """(32, 32, 3) uint8 pixels; all white if resvg refuses the icon."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=svg(drawing), skip_system_fonts=True, background="#ffffff", width=SIZE, height=SIZE
        )
    except ValueError:
        return _BLANK
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    if drawing.mirror_x:
        pixels = pixels[:, ::-1]
    if drawing.mirror_y:
        pixels = pixels[::-1]
    return np.rot90(pixels, -drawing.turns)


def render_all(drawings: Sequence[Drawing], processes: int) -> np.ndarray:
    """(N, 32, 32, 3) uint8, in the given order, whatever the number of processes."""
    images = np.empty((len(drawings), SIZE, SIZE, 3), np.uint8)
    if processes <= 1:
        for row, drawing in enumerate(drawings):
            images[row] = render(drawing)
        return images
    with get_context("spawn").Pool(processes) as pool:
        for row, pixels in enumerate(pool.imap(render, drawings, chunksize=512)):
            images[row] = pixels
    return images


def quantise(images: np.ndarray) -> np.ndarray:
    """Rounds every channel to 16 levels (0, 17, ..., 255): the dataset has 4 bits per channel."""
    return ((images.astype(np.uint16) + 8) // 17 * 17).astype(np.uint8)


def nearly_blank(images: np.ndarray) -> np.ndarray:
    """(N,) whether fewer than 12 pixels differ visibly from white, or from the image's own first pixel."""
    grey = images.min(axis=-1).reshape(len(images), -1).astype(np.int16)
    from_white = (grey < 200).sum(axis=1)
    flat = (np.abs(grey - grey[:, :1]) > 40).sum(axis=1)
    return np.minimum(from_white, flat) < 12
