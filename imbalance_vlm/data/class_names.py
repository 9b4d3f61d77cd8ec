"""Names of classes as a person would write them: the text tower reads words, not identifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imbalance_vlm.data.labels import Where, label_words, sorted_labels
from imbalance_vlm.data.lists import text_of
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded, printable

SYNONYMS = {
    "n03773504": "missile",
    "n04008634": "missile (projectile)",
    "n04355933": "sunglasses (sunglass)",
    "n04356056": "sunglasses (dark glasses)",
}
"""The two pairs of ImageNet classes that share a name, told apart by the WordNet synonyms of their synsets."""


def spoken(identifier: str) -> str:
    """The name of a folder or a file as words.

    >>> spoken("apartment_building-outdoor")
    'apartment building-outdoor'
    """
    return " ".join(printable(identifier).replace("_", " ").split())


def read_names(file: Path) -> dict[str, str]:
    """Class names by the identifier of their folders, from a file with one `<identifier> <name>` per line.

    An identifier that holds a space is followed by a tab.

    Raises:
        InputError: a line without a name, or a repeated identifier; with its number and text.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(text_of(file).splitlines(), 1):
        if not line.strip():
            continue
        key, _, name = line.strip().partition("\t" if "\t" in line.strip() else " ")
        if not name.strip() or key in names:
            problem = "the identifier comes twice" if key in names else "must be `identifier name`"
            raise InputError(f"{file}, line {number}: {problem}, such as `n01440764 tench`, got {line.strip()[:200]!r}")
        names[key] = spoken(name)
    return names


@cache
def imagenet_names() -> Mapping[str, str]:
    """The 1000 ImageNet classes by wnid, in label order (that of the sorted wnids), with CLIP's names for them.

    Both lists come from packages that are installed anyway: the wnids from timm, the names from open_clip.
    """
    from open_clip import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    wnids = sorted(ImageNetInfo().label_names())
    return dict(zip(wnids, IMAGENET_CLASSNAMES, strict=True))


def of_wnids(wnids: Sequence[str], file: Path | None = None) -> tuple[str, ...]:
    """(C,) names of ImageNet classes, all different.

    Args:
        wnids: (C,) in label order.
        file: names to use instead of CLIP's, one `<wnid> <name>` per line.

    Raises:
        InputError: a wnid without a name.
    """
    names = read_names(expanded(file)) if file else imagenet_names()
    unknown = [wnid for wnid in wnids if wnid not in names]
    if unknown:
        raise InputError(
            f"every class folder must be a wnid that {file or 'the list of the 1000 ImageNet classes'} names, such as "
            f"n01440764; got {unknown[0]!r}{f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''}; "
            "put the others elsewhere, or give a classnames.txt with one `<wnid> <name>` per line"
        )
    return distinct([names[wnid] for wnid in wnids], wnids, SYNONYMS)


def distinct(names: Sequence[str], keys: Sequence[str], better: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """(C,) the names, where those shared by several classes are replaced by `better` names, else followed by their key.

    >>> distinct(["crane", "fox", "crane"], ["n1", "n2", "n3"], {"n3": "crane (bird)"})
    ('crane (n1)', 'fox', 'crane (bird)')
    """
    times = Counter(names)
    return tuple(
        name if times[name] == 1 else (better or {}).get(key, f"{name} ({key})")
        for name, key in zip(names, keys, strict=True)
    )


def of_folders(folders: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """(C,) names of the classes of these folders.

    Args:
        folders: (C,) their names.
        file: the names to use instead: as `read_names` reads them, or for folders whose names are numbers as
            `names_by_label` does.

    Raises:
        InputError: a folder that the file does not name.
    """
    if file is None:
        return tuple(map(spoken, folders))
    numeric = all(folder.isascii() and folder.isdigit() for folder in folders)
    names = names_by_label(expanded(file)) if numeric else read_names(expanded(file))
    keys = [str(int(folder)) if numeric and folder not in names else folder for folder in folders]
    unknown = [folder for folder, key in zip(folders, keys, strict=True) if key not in names]
    if unknown:
        hint = f" (it names {', '.join(list(names)[:3])}, ...)" if numeric else did_you_mean(unknown[0], names)
        raise InputError(
            f"every class folder must be named in `class_names` {file}, got {unknown[0]!r}{hint}; add a line "
            f"`{unknown[0]}<TAB>name` for it, or leave `class_names` out"
        )
    return tuple(names[key] for key in keys)


def labels_and_names(
    values: Sequence[Any], file: Path | None, where: Where
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """(N,) labels in [0, C) and (C,) class names from the labels of a source; see `imbalance_vlm.data.labels`.

    Whole numbers are labels if a file names the classes, otherwise they are the names; both ways they sort as numbers.

    Args:
        values: (N,) the label of each image.
        file: the names of the classes, see `names_by_label`; None to use the labels themselves.
        where: the place of an image in the source, for messages.

    Raises:
        InputError: a value that is no label, or a class that the file does not name.
    """
    words, numbers = label_words(values, where)
    keys = sorted_labels(set(words), numbers)
    names = tuple(map(spoken, keys))
    if file is not None:
        named = names_by_label(expanded(file))
        unknown = [key for key in keys if key not in named]
        if unknown:
            raise InputError(
                f"{where(words.index(unknown[0]))}: every class must be named in {file}, got {unknown[0]!r}"
                f"{_remedy(unknown[0], numbers, named)}, or leave `class_names` out"
            )
        keys, names = list(named), tuple(named.values())
    index = {key: label for label, key in enumerate(keys)}
    return np.array([index[word] for word in words], np.int64), names


def _remedy(unknown: str, numbers: bool, named: Mapping[str, str]) -> str:
    """What makes a file of names name a label that it does not."""
    if list(named) != [str(number) for number in range(len(named))]:
        return f"{did_you_mean(unknown, named)}; add a line `{unknown}<TAB>name`"
    if numbers and unknown == (unknown.lstrip("0") or "0"):
        return f" (it names 0 to {len(named) - 1}); add lines up to that number"
    reason = "are written with leading zeros" if numbers else "are words"
    return (
        f": its lines hold names alone, which belong to the labels 0 to {len(named) - 1}, but the labels here "
        f"{reason}; write lines such as `{unknown}<TAB>name`"
    )


def names_by_label(file: Path) -> dict[str, str]:
    """Class names by label: one `label<TAB>name` per line, or only the name, whose label is the line's number from 0.

    Raises:
        InputError: no such file, an empty line between others, a repeated label.
    """
    if not file.is_file():
        raise InputError(f"`class_names` must be a text file with one name per line, got {str(file)!r}: no such file")
    names: dict[str, str] = {}
    for number, line in enumerate(text_of(file).rstrip("\r\n").split("\n")):
        key, tab, name = line.strip("\r\n").partition("\t")
        key, name = (key.strip(), name) if tab else (str(number), key)
        if not name.strip() or key in names:
            problem = f"label {key!r} comes twice" if key in names else "must hold a name"
            raise InputError(f"{file}, line {number + 1}: {problem}, got {line.strip()!r}")
        names[key] = " ".join(name.split())
    return names
