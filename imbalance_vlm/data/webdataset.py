"""WebDataset shards: tar files in which the files of one sample follow one another and share a name.

root/train-000000.tar   root/test-000000.tar          the splits by the names of the shards
root/train/000000.tar   root/test/000000.tar          or by folders
root/000000.tar ...                                   or one is drawn, by seed and class

    n01440764_36.jpg  n01440764_36.cls     a sample: its image, and its label as a number (.cls), a name (.txt) or in
                                           JSON (.json)

Images are read from their place in the shard, in any order; where that is, an index says, which is made once and
kept in the cache folder.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.components.ranges import Natural, Share
from imbalance_vlm.data.dataset import Dataset, Split, rgb
from imbalance_vlm.data.folder import SUFFIXES
from imbalance_vlm.data.lists import expanded, files_identity, leads_out
from imbalance_vlm.data.table import SPLIT_WORDS, to_labels, with_test
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import cache_folder, write_json
from imbalance_vlm.progress import bar

LabelFile = Literal["cls", "txt", "json"]


@dataclass(frozen=True, eq=False)
class TarImages:
    """Images inside tar files, read from their places when asked for.

    Args:
        shards: the tar files.
        stamp: identity of those.
        places: (N, 3) shard, first byte and length of each image.
        names: (N,) its name in listings.
    """

    shards: tuple[Path, ...]
    stamp: str
    places: NDArray[np.int64]
    names: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.stamp.encode() + self.places.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        shard, start, length = self.places[index].tolist()
        with self.shards[shard].open("rb") as stream:
            stream.seek(start)
            content = stream.read(length)
        with Image.open(io.BytesIO(content)) as image:
            return rgb(image)

    def name(self, index: int) -> str:
        return self.names[index]

    def take(self, keep: NDArray[np.int64]) -> TarImages:
        return TarImages(self.shards, self.stamp, self.places[keep], tuple(self.names[row] for row in keep))


def webdataset(
    *,
    root: Path,
    label_file: LabelFile = "cls",
    label_key: str = "label",
    class_names: Path | None = None,
    test_fraction: Share = 0.2,
    val_fraction: Share = 0.0,
    split_seed: Natural = 0,
    flips: bool = True,
) -> Dataset:
    """A dataset of WebDataset shards (uncompressed tar files). Nothing is ever unpacked, or written into `root`.

    Args:
        root: the folder of the shards.
        label_file: what holds the label of a sample: "cls" a number, "txt" a name, "json" either, under `label_key`.
        label_key: the key in the JSON.
        class_names: a text file with one name a line: of class 0, 1, ... where the labels are numbers, or
            `label<TAB>name` where they are words. The numbers themselves are the names without it.
        test_fraction: share of each class set aside for testing where the shards do not say; a class keeps at least
            one training image.
        val_fraction: likewise for validation.
        split_seed: draws that split; it does not depend on the run's seed, so all seeds share one test set.
        flips: whether a mirrored image still shows its class; false for text, arrows, left and right hands.

    Raises:
        InputError: no shards, a damaged or compressed one, a sample without label, a name that leads out of the shard.
    """
    root = expanded(root)
    shards = _shards(root)
    files = tuple(path for _, path in shards)
    samples: dict[str, list[tuple[int, _Sample]]] = {}
    with bar(len(files), "index shards", "shard") as progress:
        for number, (split, shard) in enumerate(shards):
            found = _index(shard, label_file, label_key)
            samples.setdefault(split or "train", []).extend((number, sample) for sample in found)
            progress.update()
    words = [sample.label for part in samples.values() for _, sample in part]
    labels, names = to_labels(words, expanded(class_names) if class_names else None, str(root))
    stamp, start = identity(root=root), 0
    splits: dict[str, Split] = {}
    for split, part in samples.items():
        places = np.array([(number, sample.start, sample.length) for number, sample in part], np.int64)
        listed = tuple(f"{files[number].relative_to(root).as_posix()}/{sample.name}" for number, sample in part)
        splits[split] = Split(TarImages(files, stamp, places, listed), labels[start : start + len(part)])
        start += len(part)
    splits = with_test(splits, test_fraction, val_fraction, split_seed, str(root))
    return Dataset(root.resolve().name or "webdataset", names, splits, flips=flips)


def identity(*, root: Path, class_names: Path | None = None, **_: object) -> str:
    """Names, sizes and times of the shards, and the class names."""
    root = expanded(root)
    digest = hashlib.sha256()
    for _split, shard in _shards(root):
        digest.update(f"{shard.relative_to(root).as_posix()}\0{_stamp(shard)}\n".encode())
    digest.update(files_identity([expanded(class_names)] if class_names else []).encode())
    return digest.hexdigest()


webdataset.identity = identity  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Sample:
    name: str
    start: int
    length: int
    label: str


def _stamp(shard: Path) -> str:
    status = shard.stat()
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _shards(root: Path) -> list[tuple[str, Path]]:
    """(split or "", shard), by name; the split is said by the folder or by a word in the name of the shard."""
    if not root.is_dir():
        raise InputError(f"`root` must be a folder of WebDataset shards (.tar), got {str(root)!r}: no such folder")
    found = []
    for path in sorted(root.rglob("*.tar")):
        words = path.relative_to(root).as_posix().lower().replace("/", "-").replace("_", "-").replace(".", "-")
        said = {SPLIT_WORDS[word] for word in words.split("-") if word in SPLIT_WORDS}
        if len(said) > 1:
            raise InputError(f"the name of a shard must say one split, got {' and '.join(sorted(said))} in {path}")
        found.append((said.pop() if said else "", path))
    if not found:
        others = [path.name for path in sorted(root.rglob("*.tar.*")) + sorted(root.rglob("*.tgz"))]
        packed = f"; {others[0]} is compressed: unpack it to .tar (gunzip), images gain nothing by it" if others else ""
        raise InputError(f"`root` {root} must hold WebDataset shards (.tar), found none{packed}")
    unsaid = [path for split, path in found if not split]
    if unsaid and len(unsaid) < len(found):
        raise InputError(
            f"either all shards in {root} must say their split (train-000000.tar, or train/000000.tar) or none, but "
            f"{unsaid[0].name} does not, while others do"
        )
    return found


def _index(shard: Path, label_file: str, label_key: str) -> list[_Sample]:
    """The samples of a shard; kept in the cache folder under the shard's path, size and time."""
    key = hashlib.sha256(f"1\0{shard.resolve()}\0{_stamp(shard)}\0{label_file}\0{label_key}".encode()).hexdigest()
    remembered = cache_folder() / "webdataset" / f"{key}.json"
    if remembered.is_file():
        try:
            return [_Sample(*row) for row in json.loads(remembered.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            remembered.unlink(missing_ok=True)
    samples = _read_index(shard, label_file, label_key)
    write_json(remembered, [[s.name, s.start, s.length, s.label] for s in samples])
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
                        f"{'leads out of the shard' if leads_out(member.name) else 'is a link'}; make the shard anew"
                    )
                folder, slash, base = member.name.rpartition("/")
                sample, _, ending = base.partition(".")
                if not member.isfile() or not sample:  # folders, and hidden files such as ._x.jpg
                    continue
                sample = folder + slash + sample
                if f".{ending.lower()}" in SUFFIXES:
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError("unexpected end of data")
                    if sample in images:
                        raise InputError(f"{shard}: a sample must have one image, {sample!r} has more")
                    images[sample] = (member.name, member.offset_data, member.size)
                elif ending.lower() == label_file:
                    stream = archive.extractfile(member)
                    labels[sample] = _label(
                        stream.read() if stream else b"", label_file, label_key, f"{shard}: {member.name}"
                    )
    except (tarfile.TarError, OSError, EOFError) as error:
        raise InputError(
            f"{shard} cannot be read as an uncompressed tar file: {error}; copy it anew, or unpack a compressed "
            "one to .tar"
        ) from error
    without = [sample for sample in images if sample not in labels]
    if without:
        raise InputError(
            f"{shard}: every image must have a label in a .{label_file} file of the same name, {without[0]!r} has none"
            f"{f', nor have {len(without) - 1} others' if len(without) > 1 else ''}; "
            "set `label_file` to cls, txt or json"
        )
    if not images:
        raise InputError(f"{shard} must hold images ({', '.join(sorted(SUFFIXES))}), found none")
    return [_Sample(name, start, length, labels[sample]) for sample, (name, start, length) in images.items()]


def _label(content: bytes, label_file: str, label_key: str, where: str) -> str:
    """What a label file says, as text."""
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
        wanted = "a whole number >= 0" if label_file == "cls" else "a name or a whole number"
        raise InputError(f"{where} must hold {wanted}, got {str(value)[:100]!r}")
    return word
