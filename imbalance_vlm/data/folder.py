"""Your own images: one folder per class.

root/train/<class>/...  root/test/<class>/...  [root/val/<class>/...]     a split that exists is used
root/<class>/...                                                         otherwise one is drawn, class by class
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from imbalance_vlm.data.class_names import of_folders
from imbalance_vlm.data.dataset import IMAGE_KINDS, SPLITS, Dataset, FileImages, Split, has_image_name
from imbalance_vlm.data.lists import files_identity
from imbalance_vlm.data.readability import read_decodable
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing, OnError
from imbalance_vlm.data.walk import OF_RUNS, Identity, count_files, kind_of, list_folder, walk
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded, printable


@dataclass(frozen=True, kw_only=True)
class FolderReader:
    """Images in class folders. Nothing is written into `root`.

    Args:
        root: holds train/ and test/ (and optionally val/) with class folders in each, or the class folders themselves.
            "training", "valid", "validation", "dev" and "testing" are read as train, val and test, in any case.
        class_names: a text file with one `<folder> <name>` per line, for folders whose names are no words (wnids); for
            numbered folders also one name per line, from number 0. None for the names of the folders.
        test_on: the split to test on: with "val", its images are the test images, and those of test/ are passed over.
        on_error: what an unreadable image does: "raise" lists all of them and stops, "skip" leaves them out and the
            result counts them.
        split: the split that is drawn where `root` holds class folders only; where there is no val/, `val_fraction`
            of the training images is drawn in any case.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    root: Path
    class_names: Path | None = None
    test_on: Literal["test", "val"] = "test"
    on_error: OnError = "raise"
    split: DrawnSplit = DEFAULT_SPLIT
    flips: bool = True

    @classmethod
    def settings_for(cls, path: Path) -> dict[str, Any] | None:
        """Any folder."""
        return {"root": str(path)} if path.is_dir() else None

    def list(self) -> Listing:
        root = expanded(self.root)
        return self._listing(root, _scan(root, self.test_on))

    def _listing(self, root: Path, scan: _Scan) -> Listing:
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
            name=printable(root.resolve().name) or "folder",
            class_names=of_folders(classes, self.class_names),
            splits=splits,
            flips=self.flips,
            undivided=None if divided else self.split,
            empty_folders=tuple(scan.empty_folders),
            passed_over=scan.passed_over,
            notes=_notes(scan),
        )

    def read(self) -> Dataset:
        """The dataset, after decoding all images once.

        Raises:
            InputError: no such folder, no images in it, a class or a split without images, one image in two splits or
                classes, a class folder without a readable name, or unreadable images.
        """
        root = expanded(self.root)
        scan = _scan(root, self.test_on)
        _check(root, scan)
        return read_decodable(self._listing(root, scan), self.on_error)

    def identity(self) -> str:
        """Hash of the names and contents of the files, and of the content of `class_names`."""
        root = expanded(self.root)
        scan = _scan(root, self.test_on)
        _check(root, scan)
        content = FileImages(root, tuple(image.path for image in scan.images)).fingerprint
        if self.class_names:
            content += files_identity([self.class_names])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, order=True)
class _File:
    """An image: its split ("" where there are none), its class folder and its path relative to the root."""

    split: str
    class_folder: str
    path: str
    depth: int = field(compare=False)
    identity: Identity = field(compare=False)


@dataclass
class _Scan:
    """What a folder holds: images, sorted; class folders without any; and the number of other files by reason."""

    images: list[_File] = field(default_factory=list)
    empty_folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def _scan(root: Path, test_on: str) -> _Scan:
    if root.is_file():
        raise InputError(
            f"`root` must be a folder of images, got the file {str(root)!r}: unpack an archive first; a table "
            "is read by data.name=table data.file=FILE"
        )
    if not root.is_dir():
        raise InputError(f"`root` must be a folder of images, got {str(root)!r}: no such folder")
    scan = _Scan()
    folders = _class_folders(root, scan)
    folder_of = _split_folders(root, folders, test_on)
    if folder_of:
        beside = [name for name in folders if name not in folder_of.values()]
        scan.passed_over["beside the splits"] += sum(count_files(root / name) for name in beside)
        for split, name in folder_of.items():
            for class_folder in _class_folders(root / name, scan):
                _add_class(scan, root, split, class_folder, f"{name}/{class_folder}")
    else:
        for class_folder in folders:
            _add_class(scan, root, "", class_folder, class_folder)
    scan.passed_over = +scan.passed_over
    if not scan.images:
        raise InputError(
            f"`root` {root} must hold class folders with images ({IMAGE_KINDS}), or train/ and "
            f"test/ with such folders; there are none. It holds: {', '.join(sorted(os.listdir(root))[:8]) or 'nothing'}"
        )
    present = {image.split for image in scan.images}
    for split in ("train", "test"):
        if split in folder_of and split not in present:
            on_val = (
                f", or set data.test_on=val to test on the images of {folder_of['val']}/" if "val" in present else ""
            )
            raise InputError(
                f"`root` {root} must have images for '{split}', but {folder_of[split]}/ holds none in class folders; "
                f"put them there{on_val if split == 'test' else ''}"
            )
    scan.images.sort()
    return scan


def _class_folders(base: Path, scan: _Scan) -> list[str]:
    """The folders in a folder whose own files are in no class; those are passed over."""
    folders, files = list_folder(base, scan.passed_over)
    for name, _ in files:
        scan.passed_over["in no class folder" if has_image_name(name) else kind_of(name)] += 1
    return [name for name, _ in folders]


def _split_folders(root: Path, folders: Sequence[str], test_on: str) -> dict[str, str]:
    """The folder of each split; {} where there are no splits.

    Raises:
        InputError: two folders for one split, or none for training or testing.
    """
    named = [name for name in folders if name.lower() in SPLIT_WORDS]
    # "train" may be a class (it runs on rails); a split has class folders inside.
    if not any(list_folder(root / name, Counter())[0] for name in named):
        if test_on != "test":
            raise InputError(f"`test_on` must be 'test' where `root` has no folder of a split, got 'val' for {root}")
        return {}
    folder_of: dict[str, str] = {}
    for name in named:
        split = SPLIT_WORDS[name.lower()]
        if split in folder_of:
            raise InputError(
                f"`root` {root} must hold one folder for each split, but both {folder_of[split]}/ and {name}/ are "
                f"'{split}'; merge them, or move one elsewhere"
            )
        folder_of[split] = name
    for required in ("train", test_on):
        if required not in folder_of:
            raise InputError(_missing_split(root, named, required, folder_of))
    return {"train": folder_of["train"], "test": folder_of["val"]} if test_on == "val" else folder_of


def _missing_split(root: Path, named: Sequence[str], required: str, folder_of: Mapping[str, str]) -> str:
    """The message on a folder of splits that has none for training or testing."""
    remedies = [f"add {required}/ with the same class folders"]
    if required == "test" and "val" in folder_of:
        remedies.append(f"set data.test_on=val to test on the images of {folder_of['val']}/")
    if required == "val" and "test" in folder_of:
        remedies.append("set data.test_on=test")
    remedies.append(f"set data.root={root / named[0]} to have test images drawn from that folder")
    if len(named) == 1:
        remedies.append(f"where {named[0]!r} is a class, put its images directly into its folder")
    return (
        f"`root` {root} must hold train/ and test/ (and optionally val/), or class folders alone; it holds "
        f"{', '.join(f'{name}/' for name in named)} with class folders inside, as splits have, but no {required}/: "
        f"{'; or '.join(remedies)}"
    )


def _add_class(scan: _Scan, root: Path, split: str, class_folder: str, place: str) -> None:
    """Add the images of one class folder, at any depth."""
    below = walk(root / place, root)
    scan.passed_over += below.passed_over
    for path, identity in below.images.items():
        scan.images.append(_File(split, class_folder, f"{place}/{path}", path.count("/"), identity))
    if not below.images and not below.passed_over[OF_RUNS]:
        scan.empty_folders.append(place)


def _notes(scan: _Scan) -> tuple[str, ...]:
    deep = [image for image in scan.images if image.depth]
    if not deep:
        return ()
    folder = deep[0].path.rpartition("/")[0]
    return (
        f"{len(deep):,} of the images lie in folders below a class folder, such as {folder}/, and are of the class "
        f"{deep[0].class_folder!r} above; where such folders are the classes, move them up",
    )


def _check(root: Path, scan: _Scan) -> None:
    """Refuse what a listing may show, but a run must not use."""
    classes = {image.class_folder for image in scan.images}
    empty = sorted({folder.rpartition("/")[2] for folder in scan.empty_folders} - classes)
    if empty:
        more = f", nor do {len(empty) - 1} others" if len(empty) > 1 else ""
        raise InputError(
            f"every folder in `root` {root} is a class and must hold images, but class folder {empty[0]!r} holds no "
            f"images{more}; put them there, or remove it"
        )
    for name in sorted(classes):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the name of every class folder in `root` {root} must be in UTF-8, because it becomes the name of "
                f"the class, got {os.fsencode(name)!r}; rename the folder"
            ) from error
    first_of = {image.identity: image for image in reversed(scan.images)}
    repeated = [image for image in scan.images if first_of[image.identity] != image]
    if repeated:
        image, first = repeated[0], first_of[repeated[0].identity]
        what = "split" if image.split != first.split else "class"
        more = f", and so do {len(repeated) - 1} others" if len(repeated) > 1 else ""
        raise InputError(
            f"an image must be in one {what}, but {first.path!r} and {image.path!r} in `root` {root} lead to the same "
            f"file{more}; remove one of them, or the link that leads there"
        )
