"""WebDataset shards: tar files in which the files of one sample follow one another and share a name.

root/train-000000.tar   root/test-000000.tar          splits by the names of the shards
root/train/000000.tar   root/test/000000.tar          or by folders
root/000000.tar ...                                   otherwise a split is drawn, class by class

    n01440764_36.jpg  n01440764_36.cls     a sample: its image, and its label as a number (.cls), a name (.txt) or in
                                           JSON (.json)

Images are read from their position in the shard, in any order. An index of the positions is made once per shard and
kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.data.class_names import labels_and_names
from imbalance_vlm.data.contents import content_hashes
from imbalance_vlm.data.dataset import IMAGE_KINDS, IMAGE_SUFFIXES, Dataset, Split
from imbalance_vlm.data.lists import files_identity, leads_out
from imbalance_vlm.data.pixels import read_rgb
from imbalance_vlm.data.reader import DEFAULT_SPLIT, SPLIT_WORDS, DrawnSplit, Listing
from imbalance_vlm.data.state_table import file_state
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, expanded, read_checked_json, write_checked_json
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
        shard, start, length = self.places[index].tolist()
        with self.shards[shard].open("rb") as stream:
            stream.seek(start)
            content = stream.read(length)
        return read_rgb(content)

    def name(self, index: int) -> str:
        return self.names[index]

    def take(self, keep: NDArray[np.int64]) -> TarImages:
        return TarImages(self.shards, self.places[keep], tuple(self.names[row] for row in keep))


@dataclass(frozen=True, kw_only=True)
class WebDatasetReader:
    """WebDataset shards (uncompressed tar files), read in place. Nothing is unpacked, or written into `root`.

    Args:
        root: the folder of the shards.
        label_file: the file that holds the label of a sample: "cls" a number, "txt" a name, "json" either, under
            `label_key`.
        label_key: the key in the JSON.
        class_names: a text file with one name per line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words. Without it, numbers are their own names.
        split: the split that is drawn where the shards name none.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.
    """

    root: Path
    label_file: LabelFile = "cls"
    label_key: str = "label"
    class_names: Path | None = None
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
        samples = _samples(shards, self.label_file, self.label_key)
        words = [sample.label for part in samples.values() for _, sample in part]
        labels, names = labels_and_names(words, self.class_names, str(root))
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
        )

    def read(self) -> Dataset:
        """The dataset.

        Raises:
            InputError: no shards, a damaged or compressed one, a sample without label, a name that leads out of the
                shard.
        """
        return self.list().dataset()

    def identity(self) -> str:
        """Hash of the names and contents of the shards and of the class names."""
        root = expanded(self.root)
        shards = [shard for _, shard in _shards(root)]
        names = [shard.relative_to(root).as_posix() for shard in shards]
        words = [*names, *content_hashes(shards), files_identity([self.class_names])]
        return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class _Sample:
    name: str
    start: int
    length: int
    label: str


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


def _samples(shards: Sequence[tuple[str, Path]], label_file: str, label_key: str) -> dict[str, list[_Numbered]]:
    """The samples of each split, with the numbers of their shards."""
    samples: dict[str, list[_Numbered]] = {}
    with bar(len(shards), "index shards", "shard") as progress:
        for number, (split, shard) in enumerate(shards):
            of_split = samples.setdefault(split or "train", [])
            of_split += [(number, sample) for sample in _index(shard, label_file, label_key)]
            progress.update()
    return samples


def _index(shard: Path, label_file: str, label_key: str) -> list[_Sample]:
    """The samples of a shard, cached under the shard's path and state."""
    key = hashlib.sha256(
        f"2\0{shard.resolve()}\0{file_state(shard.stat())}\0{label_file}\0{label_key}".encode()
    ).hexdigest()
    cached = cache_folder() / "webdataset" / f"{key}.json"
    rows = read_checked_json(cached)
    if rows is not None:
        return [_Sample(*row) for row in rows]
    samples = _read_index(shard, label_file, label_key)
    write_checked_json(cached, [[s.name, s.start, s.length, s.label] for s in samples])
    return samples


def _read_index(shard: Path, label_file: str, label_key: str) -> list[_Sample]:
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, str] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if leads_out(member.name) or member.issym() or member.islnk():
                    raise InputError(
                        f"{shard} holds {member.name!r}, which "
                        f"{'leads out of the shard' if leads_out(member.name) else 'is a link'}; build the shard again"
                    )
                folder, slash, base = member.name.rpartition("/")
                sample, _, suffix = base.partition(".")
                if not member.isfile() or not sample:  # folders, and hidden files such as ._x.jpg
                    continue
                sample = folder + slash + sample
                if f".{suffix.lower()}" in IMAGE_SUFFIXES:
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    if sample in images:
                        raise InputError(f"{shard}: a sample must have one image, {sample!r} has more")
                    images[sample] = (member.name, member.offset_data, member.size)
                elif suffix.lower() == label_file:
                    stream = archive.extractfile(member)
                    labels[sample] = _label(
                        stream.read() if stream else b"", label_file, label_key, f"{shard}: {member.name}"
                    )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{shard} cannot be read as an uncompressed tar file: {error}; copy it again, or unpack a compressed "
            "one to .tar"
        ) from error
    unlabelled = [sample for sample in images if sample not in labels]
    if unlabelled:
        raise InputError(
            f"{shard}: every image must have a label in a .{label_file} file of the same name, {unlabelled[0]!r} has "
            f"none{f', nor have {len(unlabelled) - 1} others' if len(unlabelled) > 1 else ''}; "
            "set `label_file` to cls, txt or json"
        )
    if not images:
        raise InputError(f"{shard} must hold images ({IMAGE_KINDS}), and holds none")
    return [_Sample(name, start, length, labels[sample]) for sample, (name, start, length) in images.items()]


def _label(content: bytes, label_file: str, label_key: str, where: str) -> str:
    """The label in a label file, as text."""
    try:
        text = content.decode("utf-8").strip()
        value = json.loads(text)[label_key] if label_file == "json" else text
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where} must hold a label"
            f"{f' under {label_key!r}; name the key with `label_key`' if label_file == 'json' else ''}, got "
            f"{content[:100]!r}"
        ) from error
    word = str(value).strip()
    if (
        not word
        or value is None
        or isinstance(value, (dict, list, bool, float))
        or (label_file == "cls" and not word.isdigit())
    ):
        expected = "a whole number >= 0" if label_file == "cls" else "a name or a whole number"
        raise InputError(f"{where} must hold {expected}, got {str(value)[:100]!r}")
    return word
