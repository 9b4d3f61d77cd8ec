"""Tables of images, complete and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import Dataset, Split
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.data.table import TableReader
from tests.data import miniatures
from tests.data.miniatures import encoded

ROWS = [(f"{name}/{number}.png", name) for name, count in (("fox", 5), ("Red_Kite", 3)) for number in range(count)]


def read_table(**settings: Any) -> Dataset:
    return create_dataset("table", **settings)


def identity_of(**settings: Any) -> str:
    return TableReader(**settings).identity()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path, name in ROWS:
        miniatures.write_image(tmp_path / path, len(name))
    return tmp_path


def write(root: Path, rows: list[tuple[Any, ...]], header: str = "path,label", name: str = "animals.csv") -> Path:
    file = root / name
    sep = "," if file.suffix == ".csv" else "\t"
    lines = [header.replace(",", sep), *(sep.join(map(str, row)) for row in rows)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def names(split: Split) -> list[str]:
    return [split.images.name(row) for row in range(len(split))]


@pytest.mark.parametrize("name", ["animals.csv", "animals.tsv", "animals.txt"])
def test_words_are_classes_and_a_test_part_is_drawn(root: Path, name: str) -> None:
    data = read_table(file=write(root, ROWS, name=name))
    assert (data.name, data.class_names) == ("animals", ("Red Kite", "fox"))
    assert data.counts.tolist() == [2, 4]
    assert len(data.splits["test"]) == 2
    assert names(data.splits["train"]) == names(read_table(file=root / name).splits["train"])
    data.splits["test"].images[0].load()


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.99])
def test_every_class_keeps_a_training_image(root: Path, fraction: float) -> None:
    rows = [*ROWS[:6], (ROWS[6][0], "rare")]
    data = read_table(file=write(root, rows), test_fraction=fraction, val_fraction=0.5 if fraction < 0.5 else 0.0)
    assert data.counts.min() >= 1


def test_splits_of_the_table_are_used(root: Path) -> None:
    words = ["train", "Train", "training", "VAL", "test", "train", "validation", "testing"]
    rows = [(*row, word) for row, word in zip(ROWS, words, strict=True)]
    data = read_table(file=write(root, rows, "path,label,split"))
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 4, "val": 2, "test": 2}
    drawn = read_table(file=root / "animals.csv", split_column=None)
    assert set(drawn.splits) == {"train", "test"}
    assert len(drawn.splits["train"]) == 6


def test_columns_and_root_by_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    rows = [(path, "train" if row % 3 else "test", label) for row, (path, label) in enumerate(ROWS)]
    file = write(tmp_path / "lists", rows, "image,part,species")
    data = read_table(file=file, root=root, path_column="image", label_column="species", split_column="part")
    assert len(data.splits["test"]) == 3


def test_absolute_paths(root: Path, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    data = read_table(file=write(tmp_path / "far", [(root / path, label) for path, label in ROWS]))
    data.splits["train"].images[0].load()


def test_numbers_are_labels_of_named_classes(root: Path) -> None:
    rows = [(path, 2 if label == "fox" else 0) for path, label in ROWS]
    file = write(root, rows)
    data = read_table(file=file)
    assert (data.class_names, data.counts.tolist()) == (("0", "2"), [2, 4])
    (root / "names.txt").write_text("red kite\ngoshawk\nred fox\n")
    data = read_table(file=file, class_names=root / "names.txt")
    assert (data.class_names, data.counts.tolist()) == (("red kite", "goshawk", "red fox"), [2, 0, 4])


def test_numbers_sort_as_numbers(root: Path) -> None:
    rows = [(path, 10 if label == "fox" else 9) for path, label in ROWS]
    assert read_table(file=write(root, rows)).class_names == ("9", "10")


def test_a_file_may_name_the_classes(root: Path) -> None:
    (root / "names.txt").write_text("fox\ta red fox\nRed_Kite\ta red kite\n")
    data = read_table(file=write(root, ROWS), class_names=root / "names.txt")
    assert (data.class_names, data.counts.tolist()) == (("a red fox", "a red kite"), [4, 2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fox\ta\n", "every class must be named in"),
        ("fox\ta\nfox\tb\n", "line 2: label 'fox' comes twice"),
        ("fox\t\n", "line 1: must hold a name"),
        ("a\n\nb\n", "line 2: must hold a name"),
    ],
)
def test_a_wrong_file_of_names(root: Path, text: str, words: str) -> None:
    (root / "names.txt").write_text(text)
    with pytest.raises(InputError, match=words):
        read_table(file=write(root, ROWS), class_names=root / "names.txt")


def test_a_number_beyond_the_names(root: Path) -> None:
    (root / "names.txt").write_text("a\nb\n")
    with pytest.raises(
        InputError, match=r"column 'label': every class must be named in .*, got '7' \(it names 0 to 1\)"
    ):
        read_table(file=write(root, [(path, 7) for path, _ in ROWS]), class_names=root / "names.txt")
    with pytest.raises(InputError, match="`class_names` must be a text file.*no such file"):
        read_table(file=root / "animals.csv", class_names=root / "no.txt")


@pytest.mark.parametrize("word", ["NA", "None", "nan", "null", "007", "true", "1e3"])
def test_a_class_may_have_any_name(root: Path, word: str) -> None:
    rows = [(path, word if label == "fox" else label) for path, label in ROWS]
    assert word in read_table(file=write(root, rows)).class_names


@pytest.mark.parametrize(
    ("header", "rows", "words"),
    [
        ("path,class", ROWS, "must have a column 'label', got path, class"),
        ("paths,label", ROWS, "must have a column 'path', got paths, label. Did you mean 'paths'"),
        ("path,label", [], "must have one row per image"),
        ("path,label", [*ROWS, ("", "fox")], "line 10: 'path' is empty"),
        ("path,label", [*ROWS, ("fox/1.png", " ")], "line 10, column 'label': 'label' is empty"),
        ("path,label", [*ROWS, ("fox/1.png", "fox", "more", "still")], "line 10: a row must have 2 values, .* got 4"),
        ("path,label", [*ROWS, ("fox/9.png", "fox")], "1 of 9 images is not in"),
        (
            "path,label,split",
            [(*ROWS[0], "train"), (*ROWS[1], "holdout")],
            "line 3: .* train, val or test, got 'holdout'",
        ),
        ("path,label,split", [(*row, "val") for row in ROWS], "must have images for 'train', got images for val"),
        ("path,label,split", [(*ROWS[0], "train"), (*ROWS[1], "val")], "must have images for 'test'"),
    ],
)
def test_a_broken_table_is_refused(root: Path, header: str, rows: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_table(file=write(root, rows, header))


def test_other_files_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_table(file=root / "nowhere.csv")
    (root / "x.xlsx").touch()
    with pytest.raises(InputError, match=r"must end in .csv, .tsv, .txt or .parquet, got 'x.xlsx'"):
        read_table(file=root / "x.xlsx")
    (root / "x.csv").write_bytes(b"\xff\xd8\xff\xe0\x00")
    with pytest.raises(InputError, match=r"x.csv cannot be read as a table"):
        read_table(file=root / "x.csv")
    with pytest.raises(InputError, match="must have the `split_column` 'fold'"):
        read_table(file=write(root, ROWS), split_column="fold")


def test_missing_images_may_be_left_out(root: Path) -> None:
    data = read_table(file=write(root, [*ROWS, ("fox/9.png", "fox")]), on_error="skip")
    assert data.skipped == ["fox/9.png"]


def test_a_changed_row_image_or_name_changes_the_identity(root: Path) -> None:
    file = write(root, ROWS)
    (root / "names.txt").write_text("fox\ta\nRed_Kite\tb\n")
    seen = {identity_of(file=file), identity_of(file=file, class_names=root / "names.txt")}
    assert identity_of(file=file) in seen
    miniatures.write_image(root / "fox/0.png", 9, size=9)
    seen.add(identity_of(file=file))
    write(root, ROWS[1:])
    seen.add(identity_of(file=file))
    (root / "fox/1.png").unlink()
    seen.add(identity_of(file=file))
    assert len(seen) == 5


def test_parquet(root: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame(ROWS, columns=["path", "label"])
    frame.to_parquet(root / "animals.parquet")
    assert read_table(file=root / "animals.parquet").counts.tolist() == [2, 4]
    frame["label"] = np.where(frame["label"] == "fox", 3.0, 1.0)
    frame.to_parquet(root / "animals.parquet")
    assert read_table(file=root / "animals.parquet").class_names == ("1", "3")
    frame.loc[2, "label"] = np.nan
    frame.to_parquet(root / "animals.parquet")
    with pytest.raises(InputError, match="row 3,.*'label' is empty"):
        read_table(file=root / "animals.parquet")
    (root / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot be read as a table"):
        read_table(file=root / "broken.parquet")


def test_parquet_without_its_package_says_what_to_install(root: Path) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        (root / "x.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"pip install 'imbalance_vlm\[parquet\]'"):
            read_table(file=root / "x.parquet")


def test_the_type_is_a_dataset(root: Path) -> None:
    assert isinstance(read_table(file=write(root, ROWS), flips=False), Dataset)
    assert not read_table(file=root / "animals.csv", flips=False).flips


# -- strict parsing --------------------------------------------------------------------------------------------------
def write_text(root: Path, text: str, name: str = "animals.csv") -> Path:
    (root / name).write_bytes(text.encode())
    return root / name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label\nfox/0.png,dog, small\nfox/1.png,dog\n",
            "line 2: a row must have 2 values, .* got 3.*double quotes",
        ),
        ("path,label\nfox/0.png,dog\nfox/1.png\n", "line 3: a row must have 2 values, .* got 1"),
        ('path,label\n"fox/0.png","a\nb"\nfox/1.png\n', "line 4: a row must have 2 values"),
        ('path,label\nfox/0.png,"big dog\nfox/1.png,"big dog\n', "cannot be read as a table: ',' expected after"),
        ('path,label\nfox/0.png,"big dog\n', "cannot be read as a table: unexpected end of data"),
        ('path,label\nfox/0.png,"big\tdog"\n', "line 2, column 'label': 'label' must be one line"),
        ('path,label\n"fox/0\n.png",dog\n', "line 2: 'path' must be one line"),
        ("path,label,label\nfox/0.png,dog,cat\n", "must have different names, got 'label'"),
        ("fox/0.png,fox\nfox/1.png,fox\n", "Its first line must name the columns"),
    ],
)
def test_a_row_that_does_not_fit_the_header_is_refused(root: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_table(file=write_text(root, text))


def test_quotes_in_a_table_with_tabs_are_ordinary_characters(root: Path) -> None:
    labels = ['"big fox', 'a 5" fox', '"red kite"', '"a ""fine"" kite"', '"red kite"']
    text = "path\tlabel\n" + "".join(f"fox/{row}.png\t{label}\n" for row, label in enumerate(labels))
    data = read_table(file=write_text(root, text, "animals.tsv"), test_fraction=0.5)
    assert set(data.class_names) == {'"big fox', 'a 5" fox', "red kite", 'a "fine" kite'}


@pytest.mark.parametrize("name", ["animals.csv", "animals.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", " | "])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_the_header_says_how_columns_are_separated(root: Path, name: str, separator: str, line_end: str) -> None:
    lines = [separator.join(row) for row in [("path", "label"), *ROWS]]
    data = read_table(file=write_text(root, "\ufeff" + line_end.join([*lines, ""]), name))
    assert (data.class_names, data.counts.tolist()) == (("Red Kite", "fox"), [2, 4])


def test_windows_paths_have_a_hint(root: Path) -> None:
    file = write(root, [(path.replace("/", "\\"), label) for path, label in ROWS])
    with pytest.raises(InputError, match=r"Windows paths: write / for each \\"):
        read_table(file=file)


def test_the_home_folder_is_expanded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root))
    (tmp_path / "far").mkdir()
    data = read_table(file=write(tmp_path / "far", [(f"~/{path}", label) for path, label in ROWS]))
    data.splits["train"].images[0].load()


# -- images that are listed again or cannot be read ------------------------------------------------------------------
@pytest.mark.parametrize(
    "spelling", ["fox/0.png", "./fox/0.png", "Red_Kite/../fox/0.png", "fox//0.png", "link.png", "linked/0.png"]
)
def test_an_image_under_two_spellings_is_one_image(root: Path, spelling: str) -> None:
    (root / "link.png").symlink_to(root / "fox/0.png")
    (root / "linked").symlink_to(root / "fox")
    data = read_table(file=write(root, [*ROWS, (spelling, "fox")]))
    assert sum(map(len, data.splits.values())) == len(ROWS)
    assert data.passed_over == {"rows that repeat an image": 1}
    with pytest.raises(InputError, match="line 10: an image must have one label, .* than in line 2"):
        read_table(file=write(root, [*ROWS, (spelling, "dog")]))
    split = [(*row, "train") for row in ROWS[:-1]] + [(*ROWS[-1], "test"), (spelling, "fox", "test")]
    with pytest.raises(InputError, match="line 10: an image must have one split, .* than in line 2"):
        read_table(file=write(root, split, "path,label,split"))


def test_unreadable_images_are_listed_together_or_left_out(root: Path) -> None:
    (root / "fox/0.png").write_bytes(b"x")
    (root / "fox/1.png").write_bytes(encoded(".png", 1)[:60])
    file = write(root, [*ROWS, ("fox/9.png", "fox")])
    with pytest.raises(InputError) as error:
        read_table(file=file)
    for words in ("fox/9.png", "2 images cannot be read", "fox/0.png: cannot identify", "fox/1.png: ", "data.on_error"):
        assert words in str(error.value)
    data = read_table(file=file, on_error="skip")
    assert data.skipped == ["fox/0.png", "fox/1.png", "fox/9.png"]
    assert sum(map(len, data.splits.values())) == len(ROWS) - 2
