"""Finds the images that cannot be read, before any work depends on them."""

from __future__ import annotations

import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from PIL import Image

from imbalance_vlm.data.dataset import Dataset, FileImages, Images
from imbalance_vlm.data.lists import OnError
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, read_cached, write_json
from imbalance_vlm.progress import bar

MOST_SHOWN = 20


def read_decodable(listing: Listing, on_error: OnError) -> Dataset:
    """The dataset of a listing of files, all of which are decoded once; unreadable ones are refused or left out.

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
        shown = "\n".join(f"  - {path}: {reason}" for path, reason in list(reasons.items())[:MOST_SHOWN])
        more = f"\n  ... and {len(reasons) - MOST_SHOWN} more" if len(reasons) > MOST_SHOWN else ""
        raise InputError(
            f"{len(reasons)} image{'s' if len(reasons) > 1 else ''} cannot be read:\n{shown}{more}\n"
            "Replace them, or set data.on_error to skip to leave them out"
        )
    return replace(listing, splits=splits).dataset(sorted(reasons))


def unreadable(images: Images) -> dict[int, str]:
    """The rows of the images that cannot be decoded completely, each with the reason.

    The result is cached under the images' fingerprint, so a dataset is read through once. JPEG files are decoded at an
    eighth of their size, which still walks through all their data and notices a truncated file.
    """
    if not isinstance(images, FileImages):
        return {}
    cached = cache_folder() / "readable" / f"{images.fingerprint}.json"
    known = read_cached(cached, dict[str, str])
    if known is not None and all(row.isdecimal() for row in known):
        return {int(row): reason for row, reason in known.items()}
    reasons = {}
    with (
        warnings.catch_warnings(),  # outside of the pool: the filters belong to the process, not to a thread
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar(len(images), "check images", "img") as progress,
    ):
        warnings.simplefilter("ignore")
        for row, reason in enumerate(pool.map(lambda path: _reason(images, path), images.paths, chunksize=64)):
            if reason:
                reasons[row] = reason
            progress.update()
    write_json(cached, reasons)
    return reasons


def _reason(images: FileImages, path: str) -> str:
    """Why an image cannot be decoded, or ""."""
    try:
        file = images.root / path
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would block for ever
            return "not a regular file"
        with Image.open(file) as image:
            image.draft("RGB", (32, 32))
            image.load()
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return " ".join(str(error).split()) or type(error).__name__
    return ""
