"""Finds the images that cannot be read, before any work depends on them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np
import PIL
from PIL import Image

from imbalance_vlm.data.contents import image_faults
from imbalance_vlm.data.dataset import Dataset, FileImages, Images
from imbalance_vlm.data.pixels import PIXELS_VERSION
from imbalance_vlm.data.reader import Listing, OnError
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, read_checked_json, write_checked_json
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

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def read(self, index: int, reduced: bool = False) -> Image.Image:
        """One image; see `imbalance_vlm.data.pixels.read_rgb`."""
        ...


def unreadable(images: Images) -> dict[int, str]:
    """The rows of the images that cannot be decoded completely, each with the reason; none for images in memory."""
    if isinstance(images, FileImages):
        faults = image_faults([images.root / path for path in images.paths])
    elif isinstance(images, PackedImages):
        faults = _packed_faults(images)
    else:
        return {}
    return {row: fault for row, fault in enumerate(faults) if fault}


def _packed_faults(images: PackedImages) -> list[str]:
    """Why each image cannot be decoded, "" for those that can; where all can, this is kept under their fingerprint."""
    sound = cache_folder() / "sound" / f"{images.fingerprint}-{PIXELS_VERSION}-pillow-{PIL.__version__}.json"
    if read_checked_json(sound) is not None:
        return []
    with (
        warnings.catch_warnings(),  # outside of the pool: the filters belong to the process, not to a thread
        ThreadPoolExecutor(os.cpu_count()) as pool,
        bar(len(images), "check images", "img") as progress,
    ):
        warnings.simplefilter("ignore")
        faults = []
        for fault in pool.map(partial(_fault, images), range(len(images)), chunksize=64):
            faults.append(fault)
            progress.update()
    if not any(faults):
        write_checked_json(sound, len(images))
    return faults


def _fault(images: PackedImages, row: int) -> str:
    try:
        images.read(row, reduced=True)
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return " ".join(str(error).split()) or type(error).__name__
    return ""
