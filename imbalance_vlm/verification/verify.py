"""Finds what is wrong with a dataset before anything is trained on it. Nothing is written beside the data."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import bar
from imbalance_vlm.verification.collection import Collection, ListedImage, collect
from imbalance_vlm.verification.duplicates import groups_of, near_pairs
from imbalance_vlm.verification.inspecting import (
    Inspected,
    Place,
    bombs_refused,
    grey_values,
    inspect_all,
    inspect_image,
    state,
)
from imbalance_vlm.verification.published import benchmark_of, compare
from imbalance_vlm.verification.remembered import Remembered

KINDS = {
    "missing": "listed, and there is no such file",
    "zero_byte": "a file without content",
    "truncated": "ends before its image does: copied or downloaded in part",
    "unreadable": "cannot be decoded, or not opened",
    "bomb": "so large once unpacked that opening it is an attack or a mistake",
    "path_traversal": "a name in an archive that leads out of the folder it is unpacked in",
    "link": "a link in an archive, which may point anywhere",
    "special_file": "a device or a pipe in an archive",
    "repeated_name": "a name that comes twice in an archive",
    "damaged_archive": "an archive that ends too early",
    "no_class": "an image in no class folder",
    "empty_class": "a class without an image to train on",
    "published": "another number than the published one",
    "leak": "the same bytes in two splits",
    "near_leak": "nearly the same image in two splits",
    "label_conflict": "the same bytes under two classes",
    "duplicate": "the same bytes twice in one split",
    "near_duplicate": "nearly the same image twice in one split",
    "label_suspect": "all nearest neighbours in training are of one other class",
}
"""What is looked for, the worst first."""
COLUMNS = ["kind", "split", "class", "path", "other", "detail"]
BROKEN = ("missing", "zero_byte", "truncated", "unreadable", "bomb")
NEAR = 12
"""Bits of 128 in which the hashes of nearly equal images may differ. JPEG copies of photographs of 32 x 32 pixels
differ in 4 at the median and 8 at the 90th percentile at quality 60, in 7 and 14 at quality 30. More find more and
take longer: on CIFAR-10-LT, 7 bits find 39 pairs, 12 find 81 and 18 find 142."""
ALIKE = 0.95
"""Correlation of 16 x 16 grey values from which on a pair that the hashes propose is one. Of the 142 pairs on
CIFAR-10-LT all show the same thing to the eye."""
MOST_CONFIRMED = 50_000
SHOWN = 5


@dataclass(frozen=True)
class Verification:
    """What was found.

    Args:
        name: of the dataset.
        source: as the user named it.
        class_names: (C,) names.
        counts: (C,) images of each class, by split, as listed.
        findings: a row for each, with the columns of `COLUMNS`.
        groups: class labels of many, medium and few, by the thresholds.
        thresholds: many are more than the first, few are less than the second.
        published: the facts of a benchmark beside those here; None where there are none.
        published_as: which benchmark.
        notes: what a reader should know besides.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    counts: Mapping[str, NDArray[np.int64]]
    findings: pd.DataFrame
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    thresholds: tuple[int, int] = (100, 20)
    published: pd.DataFrame | None = None
    published_as: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return self.findings.empty

    @property
    def tally(self) -> dict[str, int]:
        """Findings of each kind there is, the worst first."""
        counted = self.findings["kind"].value_counts()
        return {kind: int(counted[kind]) for kind in KINDS if kind in counted.index}


def verify(
    source: str | Path | Mapping[str, Any] | Collection,
    overrides: Sequence[str] = (),
    *,
    embeddings: bool = False,
    neighbours: int = 10,
    near: int = NEAR,
    ignore: Iterable[str] = (),
    workers: int | None = None,
    device: str = "auto",
) -> Verification:
    """Look at every image of a dataset, and at the dataset as a whole.

    What was found on an image is kept in the cache folder, so a second call, or one after a kill, only reads what has
    changed since.

    Args:
        source: a recipe, a folder of class folders, a table or an archive, see `collect`; or what that gave.
        overrides: `key.path=value` strings.
        embeddings: also look for wrong labels, among the neighbours in the space of the recipe's encoder.
        neighbours: how many must agree on another class.
        near: bits in which the perceptual hashes (128 bits) of nearly equal images may differ; -1 leaves them out.
        ignore: kinds of findings to leave out (the keys of `KINDS`).
        workers: processes that read images; None for one a core.
        device: where the encoder runs.

    Raises:
        InputError: no such recipe, folder, table or archive; lists or tables that cannot be read; `embeddings` without
            an encoder.
    """
    for kind in (ignore := tuple(ignore)):
        if kind not in KINDS:
            raise InputError(
                f"`ignore` must name kinds of findings, got {kind!r}.{did_you_mean(kind, KINDS)} "
                f"Available: {', '.join(KINDS)}"
            )
    if near > 32 or neighbours < 1:
        raise InputError(f"`near` must be at most 32 and `neighbours` at least 1, got {near} and {neighbours}")
    collection = source if isinstance(source, Collection) else collect(source, overrides)
    if embeddings and collection.recipe is None:
        raise InputError(
            f"`embeddings` needs an encoder, and {collection.source} names none; verify a recipe, or add "
            "encoder.name=NAME"
        )
    seen = inspect_images(collection, (os.cpu_count() or 1) if workers is None else workers)
    images, names = collection.images, collection.class_names
    rows = [_row(kind, path=name, detail=detail) for kind, name, detail in collection.findings]
    rows += [
        _row_of(one, names, found.problem, detail=found.detail)
        for one, found in zip(images, seen, strict=True)
        if found.problem
    ]
    counts = {split: collection.counts(split) for split in collection.splits}
    trained = counts[collection.main]
    rows += [
        _row("empty_class", collection.main, names[label], detail=f"no image in '{collection.main}'")
        for label in np.flatnonzero(trained == 0)
    ]
    duplicated, notes = _duplicates(collection, seen, near)
    rows += duplicated
    thresholds = _thresholds(collection)
    groups: Mapping[str, NDArray[np.int64]] = {}
    if trained.sum():
        groups = LongTail(trained, names, *thresholds, True, collection.group_counts).groups
    published, published_as, said = _published(collection, counts, groups, thresholds)
    notes += [said] if said else []
    if published is not None:
        rows += [
            _row(
                "published",
                path=fact,
                detail=f"published {wanted:,}, here {'none' if pd.isna(here) else f'{int(here):,}'}",
            )
            for fact, wanted, here, checked, agrees in published.itertuples(index=False)
            if checked and not agrees
        ]
    if embeddings:
        from imbalance_vlm.verification.suspects import suspects

        for row, other, share in suspects(collection, seen, neighbours, device):
            detail = f"all {share} nearest training images are of that class"
            rows.append(_row_of(images[row], names, "label_suspect", names[other], detail))
    frame = pd.DataFrame([row for row in rows if row["kind"] not in ignore], columns=COLUMNS, dtype=object)
    frame = frame.sort_values("kind", key=lambda kinds: kinds.map(list(KINDS).index), kind="stable", ignore_index=True)
    return Verification(
        collection.name,
        collection.source,
        names,
        counts,
        frame,
        groups,
        thresholds,
        published,
        published_as,
        (*collection.notes, *notes, *([f"left out on request: {', '.join(ignore)}"] if ignore else [])),
    )


def _row(
    kind: str, split: str = "", name: str = "", path: str = "", other: str = "", detail: str = ""
) -> dict[str, str]:
    return dict(zip(COLUMNS, (kind, split, name, path, other, detail), strict=True))


def _row_of(one: ListedImage, names: Sequence[str], kind: str, other: str = "", detail: str = "") -> dict[str, str]:
    return _row(kind, one.split, names[one.label] if one.label >= 0 else "", one.name, other, detail)


# -- images --------------------------------------------------------------------------------------------------------
def inspect_images(collection: Collection, workers: int) -> list[Inspected]:
    """What is found on each image: remembered, or looked at now."""
    images = collection.images
    seen: list[Inspected | None] = [one.told for one in images]
    stores: dict[str, Remembered] = {}
    same: dict[tuple[str, str], list[int]] = {}  # a file that is listed twice is read once
    states: dict[tuple[str, str], tuple[int, int]] = {}
    todo: list[Place] = []
    keys: list[tuple[str, str]] = []
    for row, one in enumerate(images):
        if seen[row] is not None or one.place is None:
            continue
        key = (one.home, one.name)
        if key in same:
            same[key].append(row)
            continue
        found: tuple[int, int] | Inspected = state(one.place.path) if one.size < 0 else (one.size, one.stamp)
        if isinstance(found, Inspected):
            same[key], seen[row] = [row], found
            continue
        same[key], states[key] = [row], found
        store = stores.setdefault(one.home, Remembered(one.home)) if one.home not in stores else stores[one.home]
        seen[row] = store.get(one.name, *found)
        if seen[row] is None:
            todo.append(one.place)
            keys.append(key)
    in_memory = [row for row, one in enumerate(images) if one.memory is not None]
    with bar(len(images), "inspect", "img", len(images) - len(todo) - len(in_memory)) as progress:
        try:
            for number, found in inspect_all(todo, workers):
                key = keys[number]
                seen[same[key][0]] = found
                stores[key[0]].add(key[1], *states[key], found)
                progress.update()
        finally:
            for store in stores.values():
                store.flush()
        for row in in_memory:
            seen[row] = _in_memory(images[row])
            progress.update()
    for rows in same.values():
        for row in rows[1:]:
            seen[row] = seen[rows[0]]
    return [found or Inspected("unreadable") for found in seen]


def _in_memory(one: ListedImage) -> Inspected:
    if one.memory is None:
        raise ValueError(f"{one.name} is not in memory")
    images, row = one.memory
    try:
        with bombs_refused():
            return inspect_image(images[row])
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Inspected("bomb", str(error))
    except Exception as error:  # decoders raise a dozen types, all of which mean the same here
        return Inspected("unreadable", " ".join(str(error).split())[:200] or type(error).__name__)


def load_image(one: ListedImage) -> Image.Image:
    """The image itself, small enough to show; raises whatever its decoder does."""
    with bombs_refused():
        if one.memory is not None:
            return one.memory[0][one.memory[1]]
        if one.place is None:
            raise ValueError(f"{one.name} was read as it streamed by")
        with Image.open(io.BytesIO(one.place.read())) as image:
            image.draft("RGB", (256, 256))
            image.load()
            return image


# -- twice -----------------------------------------------------------------------------------------------------------
def _duplicates(collection: Collection, seen: Sequence[Inspected], near: int) -> tuple[list[dict[str, str]], list[str]]:
    images, names = collection.images, collection.class_names
    rows: list[dict[str, str]] = []
    second: set[int] = set()
    for group in groups_of([found.content if not found.problem else "" for found in seen]):
        first = images[group[0]]
        for row in group[1:]:
            one = images[row]
            second.add(row)
            differs = "" if one.label == first.label else f"there of class {_name(names, first.label)!r}"
            kind = "leak" if one.split != first.split else "label_conflict" if differs else "duplicate"
            where = f"also in '{first.split}'" if one.split != first.split else ""
            twice = "the same path, listed twice" if (one.home, one.name) == (first.home, first.name) else ""
            rows.append(_row_of(one, names, kind, first.name, "; ".join(filter(None, (where, differs, twice)))))
    if near < 0:
        return rows, ["nearly equal images were not looked for"]
    candidates, complete = _near(images, seen, second, near)
    notes = [] if complete else ["so many images look alike that not all pairs were compared"]
    if len(candidates) > MOST_CONFIRMED:
        notes.append(f"of {len(candidates):,} pairs that look alike the nearest {MOST_CONFIRMED:,} are reported")
        candidates = candidates[:MOST_CONFIRMED]
    greys: dict[int, NDArray[np.float64] | None] = {}
    reported: set[tuple[int, str]] = set()
    with bar(len(candidates), "compare", "pair") as progress:
        for left, right, distance in candidates:
            progress.update()
            one, first = images[right], images[left]
            kind = "near_leak" if one.split != first.split else "near_duplicate"
            if (right, kind) in reported or not _alike(images, left, right, greys):
                continue
            reported.add((right, kind))
            differs = "" if one.label == first.label else f"there of class {_name(names, first.label)!r}"
            where = f"in '{first.split}'" if one.split != first.split else ""
            said = "; ".join(filter(None, (where, differs, f"{distance} of 128 bits differ")))
            rows.append(_row_of(one, names, kind, first.name, said))
    return rows, notes


def _name(names: Sequence[str], label: int) -> str:
    return names[label] if label >= 0 else ""


def _near(
    images: Sequence[ListedImage], seen: Sequence[Inspected], second: set[int], near: int
) -> tuple[list[tuple[int, int, int]], bool]:
    """(earlier row, later row, bits) of the pairs that the hashes propose, the nearest first; whether that is all."""
    rows_of: dict[str, list[int]] = {}
    for row, found in enumerate(seen):
        if found.look and not found.problem and row not in second:
            rows_of.setdefault(found.look, []).append(row)
    pairs: list[tuple[int, int, int]] = []
    for rows in rows_of.values():
        pairs += [(rows[0], row, 0) for row in rows[1:]]
    complete = True
    if near and len(rows_of) > 1:
        groups = list(rows_of.values())
        hashes = np.frombuffer(bytes.fromhex("".join(rows_of)), np.uint8).reshape(-1, 16)
        found_pairs = near_pairs(hashes, near)
        complete = found_pairs.complete
        # Of many that look the same, the first of each split stands for them.
        firsts = [list({images[row].split: row for row in reversed(rows)}.values()) for rows in groups]
        for (left, right), distance in zip(found_pairs.rows.tolist(), found_pairs.distances.tolist(), strict=True):
            pairs += [(min(a, b), max(a, b), distance) for a in firsts[left] for b in firsts[right]]
    return sorted(pairs, key=lambda pair: (pair[2], pair[1], pair[0])), complete


def _alike(images: Sequence[ListedImage], left: int, right: int, greys: dict[int, NDArray[np.float64] | None]) -> bool:
    """Whether two images are alike in 16 x 16 grey values; an image that streamed by goes by its hash alone."""
    for row in (left, right):
        if row not in greys:
            try:
                values = grey_values(load_image(images[row]), 16).ravel().astype(np.float64)
                centred = values - values.mean()
                greys[row] = centred / max(float(np.linalg.norm(centred)), 1e-9)
            except Exception:  # it could be read a moment ago, or streamed by
                greys[row] = None
    one, other = greys[left], greys[right]
    return one is None or other is None or float(one @ other) >= ALIKE


# -- the whole -------------------------------------------------------------------------------------------------------
def _thresholds(collection: Collection) -> tuple[int, int]:
    said = (collection.recipe or {}).get("evaluation", {}).get("groups", {})
    return int(said.get("many", 100)), int(said.get("few", 20))


def _published(
    collection: Collection,
    counts: Mapping[str, NDArray[np.int64]],
    groups: Mapping[str, NDArray[np.int64]],
    thresholds: tuple[int, int],
) -> tuple[pd.DataFrame | None, str, str]:
    if collection.section is None:
        return None, "", ""
    key, why = benchmark_of(collection.section)
    if not key:
        return None, "", "" if collection.section["name"] in OWN else f"not compared with a published table: {why}"
    images = {split: int(count.sum()) for split, count in counts.items()}
    usual = thresholds == (100, 20) and collection.group_counts is None
    sizes = {group: len(labels) for group, labels in groups.items()} if usual else None
    return compare(key, images, counts[collection.main].tolist(), sizes), key, ""


OWN = ("folder", "table", "hf_disk", "webdataset", "icons_lt")
"""Datasets that nobody has published a table of."""
