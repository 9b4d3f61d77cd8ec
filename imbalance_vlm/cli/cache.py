"""`imbalance-vlm cache`: list or prune the cached features and resized images."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from imbalance_vlm.cli.common import command
from imbalance_vlm.escapes import visible


def add(commands: Any) -> None:
    parser = command(commands, "cache", cache, "list or prune the cached features and resized images")
    parser.add_argument(
        "action", choices=["ls", "prune", "path"], help="list the entries, remove some, or print the folder"
    )
    parser.add_argument(
        "--max-gb",
        type=float,
        default=0.0,
        help="prune: keep at most this many GB (default 0; no limit with --older-than-days)",
    )
    parser.add_argument("--older-than-days", type=float, help="prune: remove only what was not used for this many days")


def cache(options: argparse.Namespace) -> None:
    from imbalance_vlm.encoders.cache import FeatureCache, ImageCopies

    features, copies = FeatureCache(), ImageCopies()
    if options.action == "path":
        print(features.root)
    elif options.action == "prune":
        _prune(features, copies, options)
    else:
        _list(features, copies)


def _prune(features: Any, copies: Any, options: argparse.Namespace) -> None:
    age = options.older_than_days * 86400 if options.older_than_days is not None else None
    limit = int(options.max_gb * 1e9) if age is None or options.max_gb else sys.maxsize
    removed = features.prune(limit, older_than=age)
    print(f"removed {len(removed)} entries, {sum(entry.bytes for entry in removed) / 1e6:.1f} MB")
    remaining = max(limit - sum(entry.bytes for entry in features.entries()), 0)  # copies are cheaper to make again
    count, freed = copies.prune(remaining, older_than=age)
    print(f"removed {count} smaller copies of images, {freed / 1e6:.1f} MB")


def _list(features: Any, copies: Any) -> None:
    entries = list(features.entries())
    for entry in entries:
        state = "" if entry.complete else "  (unfinished)"
        description = " | ".join(
            visible(str(entry.meta.get(key, "?"))) for key in ("split", "encoder", "kind", "shape")
        )
        print(f"{entry.bytes / 1e6:9.1f} MB  {description}{state}")
    print(f"{sum(entry.bytes for entry in entries) / 1e6:9.1f} MB in {len(entries)} entries of {features.root}")
    for entry in copies.entries():
        size, count = entry.meta["size"], entry.meta["copies"]
        print(f"{entry.bytes / 1e6:9.1f} MB  {count} images with a shorter side of {size}, in {entry.folder}")
