"""WebDataset shards: tar files in which the files of one sample follow one another and share a name.

root/train-000000.tar   root/test-000000.tar          splits by the names of the shards
root/train/000000.tar   root/test/000000.tar          or by folders
root/000000.tar ...                                   otherwise a split is drawn, class by class

    n01440764_36.jpg  n01440764_36.cls     a sample: its image, and its label (.cls or .txt, or .json under a key)
    a_v1.3.jpg  a_v1.3.cls                 names are compared up to their last dot

Images are read from their position in the shard, in any order. An index of the positions is made once per shard and
kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.class_names import labels_and_names
from imbalance_vlm.data.contents import content_hashes
from imbalance_vlm.data.dataset import IMAGE_KINDS, IMAGE_SUFFIXES, Dataset, Split
from imbalance_vlm.data.lists import files_identity, leads_out
from imbalance_vlm.data.pixels import read_rgb
from imbalance_vlm.data.readability import read_decodable
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing, OnError
from imbalance_vlm.data.state_table import file_state
from imbalance_vlm.data.walk import kind_of
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, expanded, parse_json, read_checked_json, write_checked_json
from imbalance_vlm.progress import bar

LabelFile = Literal["cls", "txt", "json"]


@dataclass(frozen=True, eq=False)
class TarImages:
    """Images inside tar files, read from their positions on access.

    Args:
        shards: the tar files.
        places: (N, 3) shard, first byte and length of each image.
        names: (N,) names in listings.
    """

    shards: tuple[Path, ...]
    places: NDArray[np.int64]
    names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        hashes = content_hashes(self.shards)
        return hashlib.sha256("".join(hashes).encode() + self.places.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        return self.read(index)

    def read(self, index: int, reduced: bool = False) -> Image.Image:
        """One image; see `read_rgb`."""
        shard, start, length = self.places[index].tolist()
        with self.shards[shard].open("rb") as stream:
            stream.seek(start)
            return read_rgb(stream.read(length), reduced)

    def name(self, index: int) -> str:
        return self.names[index]

    def take(self, keep: NDArray[np.int64]) -> TarImages:
        return TarImages(self.shards, self.places[keep], tuple(self.names[row] for row in keep))


@dataclass(frozen=True, kw_only=True)
class WebDatasetReader:
    """WebDataset shards (uncompressed tar files), read in place. Nothing is unpacked, or written into `root`.

    Args:
        root: the folder of the shards.
        label_file: the file that holds the label of a sample, a number or a name: "cls", "txt", or "json" under
            `label_key`.
        label_key: the key in the JSON.
        class_names: a text file with one name per line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words. Without it, numbers are their own names.
        on_error: what unreadable images do: "raise" lists all of them and stops, "skip" leaves them out and the result
            counts them.
        split: the split that is drawn where the shards name none.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    root: Path
    label_file: LabelFile = "cls"
    label_key: str = "label"
    class_names: Path | None = None
    on_error: OnError = "raise"
    split: DrawnSplit = DEFAULT_SPLIT
    flips: bool = True

    @classmethod
    def settings_for(cls, path: Path) -> dict[str, Any] | None:
        """A folder with tar files in it, or in its train/ or test/."""
        shards = (shard for pattern in ("*.tar", "train/*.tar", "test/*.tar") for shard in path.glob(pattern))
        return {"root": str(path)} if path.is_dir() and any(shards) else None

    def list(self) -> Listing:
        root = expanded(self.root)
        shards = _shards(root)
        files = tuple(path for _, path in shards)
        samples, passed_over = _samples(shards, self.label_file, self.label_key)
        listed = [entry for part in samples.values() for entry in part]

        def where(row: int) -> str:
            number, sample = listed[row]
            return f"{files[number]}: the .{self.label_file} file of {sample.name}"

        labels, names = labels_and_names([sample.label for _, sample in listed], self.class_names, where)
        start = 0
        splits: dict[str, Split] = {}
        for split, part in samples.items():
            places = np.array([(number, sample.start, sample.length) for number, sample in part], np.int64)
            image_names = tuple(
                f"{files[number].relative_to(root).as_posix()}/{sample.name}" for number, sample in part
            )
            images = TarImages(files, places, image_names)
            splits[split] = Split(images, labels[start : start + len(part)])
            start += len(part)
        return Listing(
            name=root.resolve().name or "webdataset",
            class_names=names,
            splits=splits,
            flips=self.flips,
            undivided=self.split.needed(splits),
            passed_over=passed_over,
        )

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: no shards, a damaged or compressed one, a sample without label, a name that leads out of the
                shard, unreadable images.
        """
        return read_decodable(self.list(), self.on_error)

    def identity(self) -> str:
        """Hash of the names and contents of the shards and of the class names."""
        root = expanded(self.root)
        shards = [shard for _, shard in _shards(root)]
        names = [shard.relative_to(root).as_posix() for shard in shards]
        words = [*names, *content_hashes(shards), files_identity([self.class_names])]
        return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class _Sample:
    """An image of a shard: its name there, its first byte and length, and its label as the shard holds it."""

    name: str
    start: int
    length: int
    label: str | int | float | bool | None


_Numbered = tuple[int, _Sample]


def _shards(root: Path) -> list[tuple[str, Path]]:
    """(split or "", shard), sorted; the split is given by the folder or by a word in the name of the shard."""
    if not root.is_dir():
        raise InputError(f"`root` must be a folder of WebDataset shards (.tar), got {str(root)!r}: no such folder")
    shards = []
    for path in sorted(root.rglob("*.tar")):
        words = path.relative_to(root).as_posix().lower().replace("/", "-").replace("_", "-").replace(".", "-")
        splits = {SPLIT_WORDS[word] for word in words.split("-") if word in SPLIT_WORDS}
        if len(splits) > 1:
            raise InputError(f"the name of a shard must name one split, got {' and '.join(sorted(splits))} in {path}")
        shards.append((splits.pop() if splits else "", path))
    if not shards:
        compressed = [path.name for path in sorted(root.rglob("*.tar.*")) + sorted(root.rglob("*.tgz"))]
        hint = f"; {compressed[0]} is compressed: unpack it to .tar (gunzip)" if compressed else ""
        raise InputError(f"`root` {root} must hold WebDataset shards (.tar), and holds none{hint}")
    unnamed = [path for split, path in shards if not split]
    if unnamed and len(unnamed) < len(shards):
        raise InputError(
            f"either all shards in {root} must name their split (train-000000.tar, or train/000000.tar) or none, but "
            f"{unnamed[0].name} does not, while others do"
        )
    return shards


def _samples(
    shards: Sequence[tuple[str, Path]], label_file: str, label_key: str
) -> tuple[dict[str, list[_Numbered]], Counter[str]]:
    """The samples of each split, with the numbers of their shards; and the other files in the shards, by reason."""
    samples: dict[str, list[_Numbered]] = {}
    passed_over: Counter[str] = Counter()
    with bar(len(shards), "index shards", "shard") as progress:
        for number, (split, shard) in enumerate(shards):
            of_shard, others = _index(shard, label_file, label_key)
            samples.setdefault(split or "train", []).extend((number, sample) for sample in of_shard)
            passed_over.update(others)
            progress.update()
    return samples, passed_over


def _index(shard: Path, label_file: str, label_key: str) -> tuple[list[_Sample], dict[str, int]]:
    """The samples of a shard and its other files, cached under the shard's path and state."""
    key = hashlib.sha256(
        f"3\0{shard.resolve()}\0{file_state(shard.stat())}\0{label_file}\0{label_key}".encode()
    ).hexdigest()
    cached = cache_folder() / "webdataset" / f"{key}.json"
    content = read_checked_json(cached)
    if content is not None:
        return [_Sample(*row) for row in content["samples"]], content["passed_over"]
    samples, passed_over = _read_index(shard, label_file, label_key)
    rows = [[s.name, s.start, s.length, s.label] for s in samples]
    write_checked_json(cached, {"samples": rows, "passed_over": passed_over})
    return samples, passed_over


def _read_index(shard: Path, label_file: str, label_key: str) -> tuple[list[_Sample], dict[str, int]]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str | int | float | bool | None] = {}
    passed_over: Counter[str] = Counter()
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if leads_out(member.name) or member.issym() or member.islnk():
                    raise InputError(
                        f"{shard} holds {member.name!r}, which "
                        f"{'leads out of the shard' if leads_out(member.name) else 'is a link'}; build the shard again"
                    )
                if member.isdir():
                    continue
                sample, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                if not member.isfile() or os.path.basename(member.name).startswith("."):  # such as ._x.jpg
                    passed_over["hidden or special"] += 1
                elif suffix in IMAGE_SUFFIXES:
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    if sample in images:
                        raise InputError(f"{shard}: a sample must have one image, {sample!r} has more")
                    images[sample] = (member.name, member.offset_data, member.size)
                elif suffix == f".{label_file}":
                    if sample in labels:
                        raise InputError(f"{shard}: a sample must have one label, {sample!r} has more")
                    stream = archive.extractfile(member)
                    labels[sample] = _label(
                        stream.read() if stream else b"", label_file, label_key, f"{shard}: {member.name}"
                    )
                else:
                    passed_over[kind_of(member.name)] += 1
    except InputError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:  # also of sizes in headers
        raise InputError(
            f"{shard} cannot be read as an uncompressed tar file: {error}; copy it again, or unpack a compressed "
            "one to .tar"
        ) from error
    # a.jpg and a.seg.png: the second is another image of sample a, by WebDataset's rule of the first dot.
    further = {name for name in images if name not in labels and _sample_of(name) in labels.keys() & images.keys()}
    passed_over["further images of a sample"] = len(further)
    images = {name: place for name, place in images.items() if name not in further}
    unlabelled = [sample for sample in images if sample not in labels]
    if unlabelled:
        raise InputError(
            f"{shard}: every image must have a label in a .{label_file} file of the same name, {unlabelled[0]!r} has "
            f"none{f', nor have {len(unlabelled) - 1} others' if len(unlabelled) > 1 else ''}; "
            "set `label_file` to cls, txt or json"
        )
    if not images:
        raise InputError(f"{shard} must hold images ({IMAGE_KINDS}), and holds none")
    passed_over["labels without an image"] = len(labels.keys() - images.keys())
    samples = [_Sample(*place, labels[name]) for name, place in images.items()]
    return samples, {reason: count for reason, count in passed_over.items() if count}


def _sample_of(name: str) -> str:
    """The name of a sample up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _label(content: bytes, label_file: str, label_key: str, where: str) -> str | int | float | bool | None:
    """The label in a label file, as it is written."""
    try:
        is_json = label_file == "json"
        value = parse_json(content, where)[label_key] if is_json else content.decode("utf-8-sig").strip()
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{where} must hold a label"
            f"{f' under {label_key!r}; name the key with `label_key`' if label_file == 'json' else ''}, got "
            f"{content[:100]!r}"
        ) from error
    if not isinstance(value, (str, int, float, bool, NoneType)):
        raise InputError(f"{where} must hold a name or a whole number, got {str(value)[:100]!r}")
    return None if value != value else value  # JSON in the cache has no nan
