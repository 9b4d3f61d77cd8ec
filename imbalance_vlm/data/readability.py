"""Finds the images that cannot be read, before any work depends on them."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, UnidentifiedImageError

from imbalance_vlm.data.dataset import Dataset, FileImages, Images
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, write_json
from imbalance_vlm.progress import bar

MOST_SHOWN = 20


def read_decodable(listing: Listing, on_error: OnError) -> Dataset:
    """The dataset of a listing, all images of which are decoded once; unreadable ones are refused or left out.

    Raises:
        InputError: images that cannot be read, all of them named, where `on_error` is "raise".
    """
    listing = listing.divided()
    reasons: dict[str, str] = {}
    splits = {}
    for name, split in listing.splits.items():
        bad_rows = unreadable(split.images)
        reasons |= {split.images.name(row): reason for row, reason in bad_rows.items()}
        splits[name] = split.take(np.array([row for row in range(len(split)) if row not in bad_rows], np.int64))
    if reasons and on_error == "raise":
        raise InputError(refusal(reasons))
    return replace(listing, splits=splits).dataset(sorted(reasons))


def refusal(reasons: Mapping[str, str]) -> str:
    """The error message for images that cannot be read, by name, with the remedy."""
    return f"{describe_unreadable(reasons)}\nReplace them, or set data.on_error to skip to leave them out"


def describe_unreadable(reasons: Mapping[str, str]) -> str:
    """The images that cannot be read, by name with the reason, one per line."""
    shown = "\n".join(f"  - {name}: {reason}" for name, reason in list(reasons.items())[:MOST_SHOWN])
    more = f"\n  ... and {len(reasons) - MOST_SHOWN} more" if len(reasons) > MOST_SHOWN else ""
    return f"{len(reasons)} image{'s' if len(reasons) > 1 else ''} cannot be read:\n{shown}{more}"


@runtime_checkable
class PackedImages(Protocol):
    """Images inside of other files."""

    def open(self, index: int) -> Image.Image:
        """The image, which need not be decoded yet."""
        ...


def unreadable(images: Images) -> dict[int, str]:
    """The rows of the images that cannot be decoded completely, each with the reason; none for images in memory.

    The result is cached under the images' fingerprint, so a dataset is read through once. JPEG files are decoded at an
    eighth of their size, which still walks through all their data and notices a truncated file.
    """
    if not isinstance(images, (FileImages, PackedImages)):
        return {}
    cached = cache_folder() / "readable" / f"{images.fingerprint}.json"
    if cached.is_file():
        try:
            content = json.loads(cached.read_text(encoding="utf-8"))
            return {int(row): str(reason) for row, reason in content.items()}
        except (OSError, ValueError):
            cached.unlink(missing_ok=True)
    reasons = {}
    with (
        warnings.catch_warnings(),  # outside of the pool: the filters belong to the process, not to a thread
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar(len(images), "check images", "img") as progress,
    ):
        warnings.simplefilter("ignore")
        for row, reason in enumerate(pool.map(lambda row: _reason(images, row), range(len(images)), chunksize=64)):
            if reason:
                reasons[row] = reason
            progress.update()
    write_json(cached, reasons)
    return reasons


def _reason(images: FileImages | PackedImages, row: int) -> str:
    """Why an image cannot be decoded, or ""."""
    try:
        with _open(images, row) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return decoding_problem(error)
    return ""


def _open(images: FileImages | PackedImages, row: int) -> Image.Image:
    if isinstance(images, PackedImages):
        return images.open(row)
    file = images.root / images.paths[row]
    if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would block for ever
        raise ValueError("not a regular file")
    return Image.open(file)


def decoding_problem(error: Exception) -> str:
    """Why an image could not be decoded, in one line; without the address that Pillow gives for bytes in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file (not an image, damaged from its first bytes, or of an unknown format)"
    return " ".join(str(error).split()) or type(error).__name__
