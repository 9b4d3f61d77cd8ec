"""Your own images: one folder a class.

root/train/<class>/...  root/test/<class>/...  [root/val/<class>/...]     a split that exists is used
root/<class>/...                                                         or one is drawn, by seed and class
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.components.ranges import Natural, Share
from imbalance_vlm.data.as_listed import listing
from imbalance_vlm.data.dataset import Dataset, FileImages, Split
from imbalance_vlm.data.reading import unreadable
from imbalance_vlm.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jfif"})
SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def folder(
    *,
    root: Path,
    on_error: Literal["raise", "skip"] = "raise",
    test_fraction: Share = 0.2,
    val_fraction: Share = 0.0,
    split_seed: Natural = 0,
    flips: bool = True,
) -> Dataset:
    """A dataset of class folders. Nothing is ever written into `root`.

    Args:
        root: holds train/ and test/ (and val/, if you like) with class folders each, or the class folders themselves.
        on_error: what an unreadable image does: "raise" lists all of them and stops, "skip" leaves them out and the
            result counts them.
        test_fraction: share of each class set aside for testing where there is no test/ folder; a class keeps at least
            one training image.
        val_fraction: share of each class's training images set aside for validation where there is no val/ folder.
        split_seed: draws that split; it does not depend on the run's seed, so all seeds share one test set.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.

    Raises:
        InputError: no such folder, no images in it, a split without images, or unreadable images.
    """
    root = Path(root).expanduser()
    files = _scan(root)
    classes = sorted({name for _, name, _ in files})
    index = {name: label for label, name in enumerate(classes)}
    by_split: dict[str, tuple[list[str], list[int]]] = {split: ([], []) for split in SPLITS}
    for split, name, path in files:
        paths, labels = by_split[split or "train"]
        paths.append(path)
        labels.append(index[name])
    splits = {
        split: Split(FileImages(root, tuple(paths)), labels) for split, (paths, labels) in by_split.items() if paths
    }
    if not any(split for split, _, _ in files):
        splits = draw_splits(splits["train"], test_fraction, val_fraction, split_seed)
    elif val_fraction and "train" in splits and "val" not in splits:
        splits |= draw_splits(splits["train"], 0.0, val_fraction, split_seed)
    for required in ("train", "test"):
        if required not in splits:
            raise InputError(
                f"`root` {root} must have images for '{required}', and has none; give them, or class folders alone and "
                "a test_fraction that leaves some of each class"
            )
    splits, skipped = _readable(splits, on_error)
    name = root.resolve().name or "folder"
    return Dataset(name, tuple(map(_spoken, classes)), splits, flips=flips, skipped=skipped)


def identity(*, root: Path, **_: object) -> str:
    """Names, sizes and times of the files."""
    root = Path(root).expanduser()
    paths = tuple(path for _, _, path in _scan(root))
    return hashlib.sha256(FileImages(root, paths).fingerprint.encode()).hexdigest()


folder.identity = identity  # type: ignore[attr-defined]


def _spoken(folder_name: str) -> str:
    """A class name as a person would write it: the text tower reads words, not identifiers."""
    return folder_name.replace("_", " ").strip()


def _scan(root: Path) -> list[tuple[str, str, str]]:
    """(split or "", class folder, path relative to root) of every image, sorted."""
    if root.is_file():
        raise InputError(
            f"`root` must be a folder of images, got the file {str(root)!r}: unpack an archive first; a table "
            "is read by data.name=table data.file=FILE"
        )
    if not root.is_dir():
        raise InputError(f"`root` must be a folder of images, got {str(root)!r}: no such folder")
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    # "train" may be a class (it runs on rails); a split has class folders inside.
    alike = [name for name in _folders(root) if name.lower() in _SPLIT_WORDS and _folders(root / name)]
    if alike and not has_splits:
        raise InputError(
            f"`root` {root} must hold train/ and test/ (and val/, if you like), or class folders alone; it holds "
            f"{', '.join(alike)}, which look like splits: name them train, val and test, or give the folder of one "
            "split as root to have a test part drawn from it"
        )
    found = []
    named = set()
    for split in SPLITS if has_splits else ("",):
        base = root / split
        for class_folder in _folders(base) if base.is_dir() else ():
            named.add(class_folder)
            found += [(split, class_folder, path.relative_to(root).as_posix()) for path in _images(base / class_folder)]
    if not found:
        raise InputError(
            f"`root` {root} must hold class folders with images ({', '.join(sorted(SUFFIXES))}), or train/ and test/ "
            f"with such folders; found none. It holds: {', '.join(sorted(os.listdir(root))[:8]) or 'nothing'}"
        )
    empty = sorted(named - {class_folder for _, class_folder, _ in found})
    if empty and not listing():
        more = f", nor do {len(empty) - 1} others" if len(empty) > 1 else ""
        raise InputError(
            f"every folder in `root` {root} is a class and must hold images, but class folder {empty[0]!r} holds no "
            f"images{more}; put them there, or remove it"
        )
    return sorted(found)


def _folders(base: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith("."))


def _images(base: Path) -> Iterator[Path]:
    for folder_path, _, names in os.walk(base):
        for name in names:
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                yield Path(folder_path) / name


def draw_splits(everything: Split, test_fraction: float, val_fraction: float, seed: int) -> dict[str, Split]:
    """A seeded split, class by class; every class keeps at least one image for training.

    A class's share is rounded to the nearest whole image; a class of one image is for training alone.
    """
    now = listing()
    if now and now.whole and test_fraction:
        now.drawn = True
        return {"train": everything, "test": everything}
    rng = np.random.default_rng(seed)
    parts: dict[str, list[NDArray[np.int64]]] = {split: [] for split in SPLITS}
    for label in np.unique(everything.labels):
        rows = rng.permutation(np.flatnonzero(everything.labels == label))
        test = min(round(len(rows) * test_fraction), len(rows) - 1)
        val = min(round(len(rows) * val_fraction), len(rows) - 1 - test)
        parts["test"].append(rows[:test])
        parts["val"].append(rows[test : test + val])
        parts["train"].append(rows[test + val :])
    rows_of = {split: np.sort(np.concatenate(chunks)) for split, chunks in parts.items()}
    return {split: everything.take(rows) for split, rows in rows_of.items() if len(rows)}


def _readable(splits: dict[str, Split], on_error: str) -> tuple[dict[str, Split], list[str]]:
    """The splits without the images that cannot be read, and the paths of those."""
    if listing():
        return splits, []
    kept: dict[str, Split] = {}
    bad: dict[str, str] = {}
    for name, split in splits.items():
        wrong = unreadable(split.images)
        bad |= {split.images.name(row): reason for row, reason in wrong.items()}
        kept[name] = split.take(np.array([row for row in range(len(split)) if row not in wrong], dtype=np.int64))
    if bad and on_error == "raise":
        shown = "\n".join(f"  - {path}: {reason}" for path, reason in list(bad.items())[:20])
        more = f"\n  ... and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise InputError(
            f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read:\n{shown}{more}\n"
            "Replace them, or set data.on_error to skip to leave them out"
        )
    return kept, sorted(bad)
