"""The walk of a folder of images: each file below it is an image by its name, or is passed over and counted.

Hidden files and folders, those that operating systems leave behind, and the folders of runs are passed over. Symbolic
links to files and folders are followed; a folder that is reached twice is walked once.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imbalance_vlm.data.dataset import has_image_name
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import RUN_NAME, STUDY_FILES

SYSTEM_NAMES = frozenset(
    {
        "__macosx",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "icon\r",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
    }
)
"""What macOS, Windows, Linux and Synology leave in folders, in lower case; some of it holds thumbnails."""
HIDDEN, LINKED_TWICE, OF_RUNS = "hidden", "linked twice", "in folders of runs"
"""Reasons for which files are passed over; a suffix is one too."""
MOST_REASONS = 6

Identity = tuple[object, str]
"""A file by its folder and its name in it: equal for two paths that lead to one file."""
Entries = list[tuple[str, bool]]
"""Names in a folder, each with whether it is a link."""


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
        images: the identity of each image, by its path relative to the folder, in the order of the paths. Of several
            paths to one image there is one.
        passed_over: number of other files, by reason.
    """

    images: dict[str, Identity] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)


def walk(folder: Path, *above: Path) -> Walk:
    """All files below a folder.

    Args:
        folder: where to begin; it may be hidden itself.
        above: folders that a link must not lead back to, beside those that the folder lies in.

    Raises:
        InputError: a folder that cannot be listed.
    """
    result = Walk()
    real = Path(os.path.realpath(folder))
    visited = {_folder_identity(str(place)) for place in (*above, *real.parents)}
    images: dict[str, Identity] = {}
    file_links: dict[str, Identity] = {}
    folder_links: list[tuple[str, str]] = []
    waiting = [("", str(folder))]
    while waiting or folder_links:  # links last: of two paths to one file, that without a link is used
        prefix, place = waiting.pop() if waiting else folder_links.pop(0)
        identity = _folder_identity(place)
        if identity in visited:
            result.passed_over[LINKED_TWICE] += 1
            continue
        visited.add(identity)
        folders, files = list_folder(place, result.passed_over)
        for name, is_link in folders:
            (folder_links if is_link else waiting).append((f"{prefix}{name}/", os.path.join(place, name)))
        for name, is_link in files:
            if not has_image_name(name):
                result.passed_over[kind_of(name)] += 1
            elif is_link:
                file_links[prefix + name] = file_identity(os.path.join(place, name))
            else:
                images[prefix + name] = (identity, name)
    identities = set(images.values())
    for path, identity in file_links.items():
        if identity in identities:
            result.passed_over[LINKED_TWICE] += 1
        else:
            images[path] = identity
            identities.add(identity)
    result.images = dict(sorted(images.items(), key=lambda item: item[0].split("/")))
    return result


def list_folder(folder: str | Path, passed_over: Counter[str]) -> tuple[Entries, Entries]:
    """The folders and the files in a folder by name, each with whether it is a link; those passed over are counted.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"the folder {str(folder)!r} cannot be listed: {error.strerror}; make it readable, or move it elsewhere"
        ) from error
    names = {entry.name for entry in entries}
    if names >= STUDY_FILES or any(map(RUN_NAME.fullmatch, names)):
        passed_over[OF_RUNS] += count_files(folder)
        return [], []
    folders: Entries = []
    files: Entries = []
    for entry in entries:
        is_link = entry.is_symlink()
        is_folder = os.path.isdir(entry.path) if is_link else entry.is_dir()
        if is_hidden(entry.name):
            passed_over[HIDDEN] += count_files(entry.path) if is_folder and not is_link else 1
        else:
            (folders if is_folder else files).append((entry.name, is_link))
    return folders, files


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or left behind by an operating system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def kind_of(name: str) -> str:
    """The reason for which a file that is no image is passed over: its suffix.

    >>> kind_of("notes.TXT"), kind_of("README"), kind_of("a. b")
    ('.txt', 'without a suffix', 'of other kinds')
    """
    suffix = os.path.splitext(name)[1].lower()
    if not suffix:
        return "without a suffix"
    return suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) < 12 else "of other kinds"


def count_files(folder: str | Path) -> int:
    """The number of files below a folder, hidden ones too; links to folders are not followed."""
    return sum(len(files) for _, _, files in os.walk(folder))


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """How many files are passed over, and why, in one line; "" for none.

    >>> describe_passed_over({".txt": 12, "hidden": 4})
    '16 files passed over: 12 .txt, 4 hidden'
    """
    total = sum(passed_over.values())
    reasons = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {reason}" for reason, count in reasons[:MOST_REASONS]]
    if len(reasons) > MOST_REASONS:
        shown.append(f"{sum(count for _, count in reasons[MOST_REASONS:]):,} others")
    return f"{total:,} file{'s' * (total > 1)} passed over: {', '.join(shown)}" if total else ""


def file_identity(path: str) -> Identity:
    """The identity of one file, through links."""
    if os.path.islink(path):
        target = os.path.join(os.path.dirname(path), os.readlink(path))
        path = os.path.realpath(target) if os.path.islink(target) else target  # realpath takes ten times as long
    folder, name = os.path.split(path)
    return _folder_identity(folder or "."), name


def _folder_identity(folder: str) -> object:
    """Device and inode, which are equal for two spellings of a path where a file system ignores case."""
    try:
        status = os.stat(folder)
    except OSError:
        return folder
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)
