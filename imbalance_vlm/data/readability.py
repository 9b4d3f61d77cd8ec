"""Finds the images that cannot be read, before any work depends on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from imbalance_vlm.data.contents import image_faults
from imbalance_vlm.data.dataset import Dataset, FileImages, Images
from imbalance_vlm.data.lists import OnError
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.errors import InputError

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
        raise InputError(
            f"{describe_unreadable(reasons)}\nReplace them, or set data.on_error to skip to leave them out"
        )
    return replace(listing, splits=splits).dataset(sorted(reasons))


def describe_unreadable(reasons: Mapping[str, str]) -> str:
    """The images that cannot be read, by name with the reason, one per line."""
    shown = "\n".join(f"  - {path}: {reason}" for path, reason in list(reasons.items())[:MOST_SHOWN])
    more = f"\n  ... and {len(reasons) - MOST_SHOWN} more" if len(reasons) > MOST_SHOWN else ""
    return f"{len(reasons)} image{'s' if len(reasons) > 1 else ''} cannot be read:\n{shown}{more}"


def unreadable(images: Images) -> dict[int, str]:
    """The rows of the images that cannot be decoded completely, each with the reason; see `image_faults`."""
    if not isinstance(images, FileImages):
        return {}
    faults = image_faults([images.root / path for path in images.paths])
    return {row: fault for row, fault in enumerate(faults) if fault}
