"""Your own images: one folder per class.

root/train/<class>/...  root/test/<class>/...  [root/val/<class>/...]     a split that exists is used
root/<class>/...                                                         otherwise one is drawn, class by class
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imbalance_vlm.data.class_names import spoken
from imbalance_vlm.data.dataset import IMAGE_SUFFIXES, SPLITS, Dataset, FileImages, Split, has_image_name
from imbalance_vlm.data.lists import expanded
from imbalance_vlm.data.readability import read_decodable
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing, OnError
from imbalance_vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FolderReader:
    """Images in class folders. Nothing is written into `root`.

    Args:
        root: holds train/ and test/ (and optionally val/) with class folders in each, or the class folders themselves.
        on_error: what an unreadable image does: "raise" lists all of them and stops, "skip" leaves them out and the
            result counts them.
        split: the split that is drawn where `root` holds class folders only; where there is no val/, `val_fraction`
            of the training images is drawn in any case.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    root: Path
    on_error: OnError = "raise"
    split: DrawnSplit = DEFAULT_SPLIT
    flips: bool = True

    @classmethod
    def settings_for(cls, path: Path) -> dict[str, Any] | None:
        """Any folder."""
        return {"root": str(path)} if path.is_dir() else None

    def list(self) -> Listing:
        return self._listing(_scan(expanded(self.root)))

    def _listing(self, scan: _Scan) -> Listing:
        root = expanded(self.root)
        classes = sorted({image.class_folder for image in scan.images})
        label_of = {name: label for label, name in enumerate(classes)}
        splits = {}
        for split in SPLITS:
            images = [image for image in scan.images if (image.split or "train") == split]
            if images:
                paths = tuple(image.path for image in images)
                splits[split] = Split(FileImages(root, paths), [label_of[image.class_folder] for image in images])
        divided = any(image.split for image in scan.images)
        if divided and self.split.val_fraction and "train" in splits and "val" not in splits:
            splits |= replace(self.split, test_fraction=0.0).draw(splits["train"])
        return Listing(
            name=root.resolve().name or "folder",
            class_names=tuple(map(spoken, classes)),
            splits=splits,
            flips=self.flips,
            undivided=None if divided else self.split,
            empty_folders=tuple(scan.empty_folders),
            other_files=scan.other_files,
        )

    def read(self) -> Dataset:
        """The dataset, after decoding all images once.

        Raises:
            InputError: no such folder, no images in it, a class or a split without images, or unreadable images.
        """
        root = expanded(self.root)
        scan = _scan(root)
        _refuse_empty_classes(root, scan)
        return read_decodable(self._listing(scan), self.on_error)

    def identity(self) -> str:
        """Hash of the names, sizes and modification times of the files."""
        root = expanded(self.root)
        scan = _scan(root)
        _refuse_empty_classes(root, scan)
        paths = tuple(image.path for image in scan.images)
        return hashlib.sha256(FileImages(root, paths).fingerprint.encode()).hexdigest()


@dataclass(frozen=True, order=True)
class _File:
    """An image: its split ("" where there are none), its class folder and its path relative to the root."""

    split: str
    class_folder: str
    path: str


@dataclass
class _Scan:
    """What a folder holds: images, sorted; class folders without any; and the number of other files by suffix."""

    images: list[_File] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    other_files: Counter[str] = field(default_factory=Counter)


def _scan(root: Path) -> _Scan:
    if root.is_file():
        raise InputError(
            f"`root` must be a folder of images, got the file {str(root)!r}: unpack an archive first; a table "
            "is read by data.name=table data.file=FILE"
        )
    if not root.is_dir():
        raise InputError(f"`root` must be a folder of images, got {str(root)!r}: no such folder")
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    # "train" may be a class (it runs on rails); a split has class folders inside.
    split_like = [name for name in _subfolders(root) if name.lower() in SPLIT_WORDS and _subfolders(root / name)]
    if split_like and not has_splits:
        raise InputError(
            f"`root` {root} must hold train/ and test/ (and optionally val/), or class folders alone; it holds "
            f"{', '.join(split_like)}, which look like splits: name them train, val and test, or give the folder of "
            "one split as root to have a test part drawn from it"
        )
    scan = _Scan()
    _count_others(scan, [entry.name for entry in os.scandir(root) if entry.is_file()])
    for split in SPLITS if has_splits else ("",):
        base = root / split
        if not base.is_dir():
            continue
        if split:
            _count_others(scan, [entry.name for entry in os.scandir(base) if entry.is_file()])
        for class_folder in _subfolders(base):
            paths = _image_paths(base / class_folder, scan)
            scan.images += [_File(split, class_folder, path.relative_to(root).as_posix()) for path in paths]
            if not paths:
                scan.empty_folders.append((base / class_folder).relative_to(root).as_posix())
    if not scan.images:
        raise InputError(
            f"`root` {root} must hold class folders with images ({', '.join(sorted(IMAGE_SUFFIXES))}), or train/ and "
            f"test/ with such folders; there are none. It holds: {', '.join(sorted(os.listdir(root))[:8]) or 'nothing'}"
        )
    scan.images.sort()
    return scan


def _refuse_empty_classes(root: Path, scan: _Scan) -> None:
    classes = {image.class_folder for image in scan.images}
    empty = sorted({folder.rpartition("/")[2] for folder in scan.empty_folders} - classes)
    if empty:
        more = f", nor do {len(empty) - 1} others" if len(empty) > 1 else ""
        raise InputError(
            f"every folder in `root` {root} is a class and must hold images, but class folder {empty[0]!r} holds no "
            f"images{more}; put them there, or remove it"
        )


def _subfolders(base: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith("."))


def _image_paths(class_folder: Path, scan: _Scan) -> list[Path]:
    """The images in a class folder, at any depth; other files are counted."""
    paths = []
    for place, _, names in os.walk(class_folder):
        paths += [Path(place) / name for name in names if has_image_name(name)]
        _count_others(scan, names)
    return paths


def _count_others(scan: _Scan, names: list[str]) -> None:
    scan.other_files.update(Path(name).suffix.lower() or "none" for name in names if not has_image_name(name))
