"""Tables and shards with odd names, labels and rows: all entries add up, and the readers agree."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.prepare import make_reader
from tests.data.miniatures import encoded, write_tar

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

letters = st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0\\")
stems = st.text(letters, min_size=1, max_size=6).filter(
    lambda stem: stem == stem.strip() and stem[0] not in "~." and ":" not in stem and stem.isprintable()
)
odd_labels = st.sampled_from(
    [
        "01",
        "1",
        "1.0",
        "1.5",
        "-1",
        "",
        " ",
        "NA",
        "true",
        "a, b",
        '"a',
        'a"b',
        "a\tb",
        "a\nb",
        "_",
        "a_b",
        "a b",
        "é",
        "e\u0301",
    ]
)
labels = odd_labels | st.text(max_size=4)
images = st.lists(st.tuples(stems, labels, st.booleans()), min_size=1, max_size=8)
SETTINGS = {"test_fraction": 0.5, "on_error": "skip"}


def outcome(section: dict[str, Any]) -> Dataset | str:
    """The dataset, or the message of the refusal."""
    try:
        return make_reader({**SETTINGS, **section}).read()
    except InputError as error:
        return str(error)


def classes_of(dataset: Dataset) -> dict[str, str]:
    """The class name of each image by its name in the source."""
    return {
        split.images.name(row).removeprefix("0.tar/"): dataset.class_names[label]
        for split in dataset.splits.values()
        for row, label in enumerate(split.labels.tolist())
    }


def spoken_class(label: str, dataset: Dataset) -> bool:
    """Whether a label, as it was written, is a class of the dataset."""
    words = " ".join(label.strip().replace("_", " ").split())
    return words in dataset.class_names or words.partition(".")[0] in dataset.class_names


def write_sources(folder: Path, rows: list[tuple[str, str, bool]]) -> dict[str, dict[str, Any]]:
    """One dataset as .csv, as .tsv and as shards: a name, a label, and whether the image can be read."""
    members: dict[str, bytes] = {}
    for number, (stem, label, readable) in enumerate(rows):
        content = encoded(".png", number) if readable else b"x"
        (folder / f"{stem}.png").write_bytes(content)
        members |= {f"{stem}.png": content, f"{stem}.json": json.dumps({"label": label}).encode()}
    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label"), *((f"{stem}.png", label) for stem, label, _ in rows)])
    lines = ["path\tlabel", *(f"{stem}.png\t{label}" for stem, label, _ in rows)]
    (folder / "t.tsv").write_bytes("\n".join(lines).encode())
    write_tar(folder / "w" / "0.tar", members)
    return {
        "csv": {"name": "table", "file": folder / "t.csv"},
        "tsv": {"name": "table", "file": folder / "t.tsv"},
        "shards": {"name": "webdataset", "root": folder / "w", "label_file": "json"},
    }


@settings(max_examples=60, deadline=None)
@given(described=images)
def test_entries_add_up_and_readers_agree(described: list[tuple[str, str, bool]]) -> None:
    rows = list({os.path.normcase(stem): (stem, label, readable) for stem, label, readable in described}.values())
    with tempfile.TemporaryDirectory() as name:
        # Every label twice, so that a test image can be drawn.
        doubled = [(f"{stem}-{part}", label, readable) for stem, label, readable in rows for part in "ab"]
        datasets = {form: outcome(section) for form, section in write_sources(Path(name), doubled).items()}
    read = {form: dataset for form, dataset in datasets.items() if isinstance(dataset, Dataset)}
    for dataset in read.values():
        classes = classes_of(dataset)
        assert len(classes) + len(dataset.skipped) == len(doubled)
        assert dataset.passed_over == {}
        assert {f"{stem}.png" for stem, _, readable in doubled if readable} == set(classes)
        for stem, label, readable in doubled:
            assert not readable or spoken_class(label, dataset)
            assert not readable or classes[f"{stem}.png"] in (
                " ".join(label.strip().replace("_", " ").split()),
                label.strip().partition(".")[0],
            )
    quoted = any(label.strip()[:1] == '"' for _, label, _ in rows)
    if "csv" in read and "tsv" in read and not quoted:
        assert classes_of(read["csv"]) == classes_of(read["tsv"])
    # Both hold the same values; shards draw their test images before they leave out those that cannot be read.
    if all(readable for _, _, readable in rows):
        assert ("csv" in read) == ("shards" in read), (datasets["csv"], datasets["shards"])
    if "csv" in read and "shards" in read:
        assert classes_of(read["csv"]) == classes_of(read["shards"])


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from(["train", "test"])), max_size=8))
def test_rows_are_used_repeated_or_refused(rows: list[tuple[int, int, str]]) -> None:
    base = [(f"{split}{label}{part}", label, split) for split in ("train", "test") for label in (0, 1) for part in "ab"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        listed = [*base, *((f"x{number}", label, split) for number, label, split in rows)]
        for stem, *_ in listed:
            (folder / f"{stem}.png").write_bytes(encoded(".png", 1))
        lines = ["path,label,split", *(f"{stem}.png,{label},{split}" for stem, label, split in listed)]
        (folder / "t.csv").write_text("\n".join(lines))
        dataset = outcome({"name": "table", "file": folder / "t.csv"})
    meanings = Counter(stem for stem, _, _ in set(listed))
    if max(meanings.values()) > 1:
        assert isinstance(dataset, str)
        assert "an image must have one" in dataset
    else:
        assert isinstance(dataset, Dataset)
        assert len(classes_of(dataset)) + sum(dataset.passed_over.values()) == len(listed)
