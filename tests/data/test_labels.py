"""Labels mean the same in every format, and every reader of one dataset gives the same classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.labels import label_number, label_words, sorted_labels
from imbalance_vlm.data.lists import read_list
from imbalance_vlm.data.prepare import make_reader
from tests.data.miniatures import encoded, write_tar

Writer = Callable[[Path, Sequence[Any]], dict[str, Any]]


def image_paths(root: Path, labels: Sequence[Any]) -> list[str]:
    """One image per label below root."""
    for number in range(len(labels)):
        (root / f"{number}.png").write_bytes(encoded(".png", number))
    return [f"{number}.png" for number in range(len(labels))]


def text_table(root: Path, labels: Sequence[Any], suffix: str, separator: str) -> dict[str, Any]:
    lines = ["path,label", *(f"{path},{label}" for path, label in zip(image_paths(root, labels), labels, strict=True))]
    (root / f"t{suffix}").write_text("\n".join(lines).replace(",", separator), encoding="utf-8")
    return {"name": "table", "file": root / f"t{suffix}"}


def parquet(root: Path, labels: Sequence[Any]) -> dict[str, Any]:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        arrow.table({"path": image_paths(root, labels), "label": list(labels)}), root / "t.parquet"
    )
    return {"name": "table", "file": root / "t.parquet"}


def hf_disk(root: Path, labels: Sequence[Any]) -> dict[str, Any]:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": encoded(".png", number), "path": None} for number in range(len(labels))]
    rows = datasets.Dataset.from_dict({"image": images, "label": list(labels)})
    rows.save_to_disk(str(root / "hf"))
    return {"name": "hf_disk", "root": root / "hf"}


def shards(root: Path, labels: Sequence[Any], kind: str) -> dict[str, Any]:
    members: dict[str, bytes] = {}
    for number, label in enumerate(labels):
        content = json.dumps({"label": label}) if kind == "json" else str(label)
        members |= {f"{number}.png": encoded(".png", number), f"{number}.{kind}": content.encode()}
    write_tar(root / "w" / "0.tar", members)
    return {"name": "webdataset", "root": root / "w", "label_file": kind}


WRITERS: dict[str, Writer] = {
    "csv": lambda root, labels: text_table(root, labels, ".csv", ","),
    "semicolons": lambda root, labels: text_table(root, labels, ".csv", ";"),
    "tsv": lambda root, labels: text_table(root, labels, ".tsv", "\t"),
    "txt": lambda root, labels: text_table(root, labels, ".txt", "\t"),
    "parquet": parquet,
    "hf_disk": hf_disk,
    "cls": lambda root, labels: shards(root, labels, "cls"),
    "text": lambda root, labels: shards(root, labels, "txt"),
    "json": lambda root, labels: shards(root, labels, "json"),
}


def read(section: dict[str, Any]) -> Dataset:
    return make_reader({"test_fraction": 0.5, **section}).read()


def class_of_images(dataset: Dataset) -> dict[int, str]:
    """The class name of each image by its number, which is in its pixels' order of writing and in its name."""
    return {
        int(split.images.name(row).rpartition("/")[2].partition(".")[0]): dataset.class_names[label]
        for split in dataset.splits.values()
        for row, label in enumerate(split.labels.tolist())
    }


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["01", "1", "007", "10", "9"], ("1", "01", "007", "9", "10")),
        ([0.0, 2.0, 10.0], ("0", "2", "10")),
        ([3, 20, 100], ("3", "20", "100")),
        (["cat", "2.0", "-", "v1.0"], ("-", "2.0", "cat", "v1.0")),
        (["NA", "None", "nan", "1e3", "true", "Ünïcode"], ("1e3", "NA", "None", "nan", "true", "Ünïcode")),
    ],
)
def test_all_readers_agree_on_the_same_labels(
    labels: list[Any], names: tuple[str, ...], form: str, tmp_path: Path
) -> None:
    dataset = read(WRITERS[form](tmp_path, labels * 2))
    assert dataset.class_names == names
    expected = [str(label).removesuffix(".0") if isinstance(label, float) else label for label in labels]
    assert class_of_images(dataset) == {number: str(label) for number, label in enumerate(expected * 2)}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1], "got '-1'.*without a label"),
        ([0.0, 1.0, -1.0], "got '-1.0'.*without a label"),
        ([0.5, 1.0, 2.0], "got '0.5'.*whole numbers in digits"),
        ([True, False, True], "got 'True'.*names of the two classes"),
        (["cat", "", "dog"], "'label' is empty"),
        (["cat", "_", "dog"], "got '_'.*needs a letter"),
    ],
)
def test_all_readers_refuse_the_same_labels(labels: list[Any], words: str, form: str, tmp_path: Path) -> None:
    section = WRITERS[form](tmp_path, labels * 2)
    with pytest.raises(InputError, match=words):
        read(section)


@pytest.mark.parametrize("value", ["a\tb", "a\nb", "a\rb", "a\x00b", "a\x1b[1mb", "a\u2028b", "\ud800", [1], {"a": 1}])
def test_values_of_more_than_a_line_of_text_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"row 1: .*(one line of text|name or a whole number|is empty)"):
        label_words(["cat", value], lambda row: f"row {row}")


def test_numbers_are_sorted_without_being_computed() -> None:
    long = "9" * 5000  # Python refuses to convert as many digits
    assert sorted_labels({long, "10", "9"}, numbers=True) == ["9", "10", long]


@pytest.mark.parametrize(("value", "number"), [("7", 7), (7.0, 7), ("07", None), (-1, None), ("9" * 30, None)])
def test_a_label_of_a_numbered_list(value: Any, number: int | None) -> None:
    assert label_number(value) == number


@pytest.mark.parametrize("label", ["01", "-1", "1.5", "cat", "9" * 30])
def test_a_list_refuses_other_labels(label: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"a.jpg 0\nb.jpg {label}\n")
    with pytest.raises(InputError, match="line 2: must be .* without leading zeros"):
        read_list(tmp_path / "list.txt")


def test_a_list_refuses_an_image_under_two_spellings(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/b.jpg 0\na/./b.jpg 0\n")
    with pytest.raises(InputError, match="line 2: an image must be listed once"):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("labels", "text", "words"),
    [
        (["cat", "dog"], "cat\ndog\n", "lines hold names alone.* are words; write lines such as `cat<TAB>name`"),
        (["01", "02"], "a\nb\n", "written with leading zeros; write lines such as `01<TAB>name`"),
        (["0", "3"], "a\nb\n", r"got '3' \(it names 0 to 1\); add lines up to that number"),
        (["cat", "dog"], "cat\tCat\n", "add a line `dog<TAB>name`"),
    ],
)
def test_the_hint_about_class_names_can_be_followed(labels: list[str], text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read(WRITERS["csv"](tmp_path, labels * 2) | {"class_names": tmp_path / "names.txt"})
