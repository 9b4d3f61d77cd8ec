"""Broken lists, tables, split files, batches and shards: the error names the file, the place in it and the remedy."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.broken_inputs import Workspace
from tests.data.miniatures import encoded, write_tar

# -- list files ------------------------------------------------------------------------------------------------------
FIRST = "train/n01440764/n01440764_0.JPEG"
"""The first image of ImageNet-LT's training list in miniature, of label 0."""


def run_with_list(workspace: Workspace, old: str, new: str, split: str = "train") -> list[str]:
    """The command for ImageNet-LT in miniature, with `old` replaced in one of its lists."""
    root, section = workspace.benchmark("imagenet_lt")
    file = root / f"ImageNet_LT_{split}.txt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return workspace.run(data=section)


def run_with_appended_line(workspace: Workspace, line: str) -> list[str]:
    root, section = workspace.benchmark("imagenet_lt")
    with (root / "ImageNet_LT_train.txt").open("a") as stream:
        stream.write(f"{line}\n")
    return workspace.run(data=section)


def test_a_missing_image_of_a_list_is_named(workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    (root / FIRST).unlink()
    workspace.assert_refused(workspace.run(data=section), "1 of 31 images is not in", FIRST, "data.on_error to skip")


def test_a_missing_image_of_a_list_can_be_skipped(workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    (root / FIRST).unlink()
    workspace.assert_skipped(workspace.run("data.on_error=skip", data=section), 1)


def test_an_unreadable_image_of_a_list_is_named(workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    (root / FIRST).write_bytes(b"")
    workspace.assert_refused(workspace.run(data=section), FIRST, "cannot be read")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (f"{FIRST} 999999999", ("labels must run from 0 to 999999999", "without gaps", FIRST)),
        (f"{FIRST} tench", ("ImageNet_LT_train.txt, line 1", "with a label >= 0", f"got '{FIRST} tench'")),
        (f"{FIRST} -1", ("ImageNet_LT_train.txt, line 1", "with a label >= 0", f"got '{FIRST} -1'")),
        (FIRST, ("ImageNet_LT_train.txt, line 1", "one `relative/path label` per line")),
        ("/etc/passwd 0", ("line 1", "must stay below `root`", "/etc/passwd")),
        ("train/../../x.jpg 0", ("line 1", "must stay below `root`", "train/../../x.jpg")),
    ],
    ids=["label out of range", "label in words", "negative label", "no label", "absolute path", "path that leads out"],
)
def test_a_wrong_line_of_a_list_is_named(line: str, words: tuple[str, ...], workspace: Workspace) -> None:
    workspace.assert_refused(run_with_list(workspace, f"{FIRST} 0", line), *words)


@pytest.mark.parametrize("label", [0, 1], ids=["the same label", "another label"])
def test_an_image_listed_twice_is_refused(label: int, workspace: Workspace) -> None:
    command = run_with_appended_line(workspace, f"{FIRST} {label}")
    workspace.assert_refused(command, "ImageNet_LT_train.txt, line 16", FIRST, "line 1", "remove one")


def test_lists_of_two_releases_are_refused(workspace: Workspace) -> None:
    command = run_with_list(workspace, "val/n01440764", "val/n01443537", "test")
    workspace.assert_refused(command, "ImageNet_LT_test.txt", "does not go with the other lines", "from one release")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\n\n", ("ImageNet_LT_train.txt must hold", "and is empty")),
        (b"\xff\xfe\x00\x80", ("ImageNet_LT_train.txt must be a text file in UTF-8",)),
    ],
    ids=["empty", "binary"],
)
def test_a_list_without_lines_is_refused(content: bytes, words: tuple[str, ...], workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    (root / "ImageNet_LT_train.txt").write_bytes(content)
    workspace.assert_refused(workspace.run(data=section), *words)


@pytest.mark.parametrize("folder_in_place", [False, True], ids=["missing", "a folder"])
def test_a_missing_list_is_named_with_its_origin(folder_in_place: bool, workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    (root / "ImageNet_LT_val.txt").unlink()
    if folder_in_place:
        (root / "ImageNet_LT_val.txt").mkdir()
    words = ("ImageNet_LT_val.txt is missing", "`relative/path label`", "OLTR", "`lists`")
    workspace.assert_refused(workspace.run(data=section), *words)


def test_tabs_blank_lines_a_byte_order_mark_and_windows_line_ends_work(workspace: Workspace) -> None:
    root, section = workspace.benchmark("imagenet_lt")
    file = root / "ImageNet_LT_train.txt"
    text = "\ufeff" + file.read_text().replace(" ", "\t").replace("\n", "  \r\n\r\n")
    file.write_bytes(text.encode())
    workspace.assert_works(workspace.run(data=section))


# -- tables ----------------------------------------------------------------------------------------------------------
def table_rows() -> list[list[str]]:
    """The header and six rows of a table of the workspace's images."""
    rows = [["path", "label", "split"]]
    for label in ("red apple", "green leaf"):
        for number, split in enumerate(("train", "train", "test")):
            rows.append([f"own/{label}/{number}.png", label, split])
    return rows


def run_table(workspace: Workspace, rows: list[list[str]], name: str = "own.csv") -> list[str]:
    """The command for a table with these rows."""
    file = workspace.data / name
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return workspace.run(data={"name": "table", "file": str(file)})


@pytest.mark.parametrize(
    ("row", "column", "value", "words"),
    [
        (0, 0, "file", ("must have a column 'path'", "got file, label, split", "`path_column`")),
        (2, 2, "holdout", ("line 3", "must be train, val or test", "'holdout'", "`split_column` to null")),
        (3, 1, "", ("line 4", "'label' is empty", "fill it, or remove")),
        (1, 0, " ", ("line 2", "'path' is empty")),
        (1, 0, "own/gone.png", ("1 of 6 images is not in", "own/gone.png", "data.on_error")),
        (3, 0, "own/red apple/0.png", ("own.csv, line 4", "one split", "own/red apple/0.png", "line 2")),
        (4, 0, "own/red apple/0.png", ("own.csv, line 5", "one label", "own/red apple/0.png", "line 2")),
    ],
    ids=[
        "no path column",
        "unknown split",
        "no label",
        "no path",
        "missing image",
        "image in two splits",
        "image with two labels",
    ],
)
def test_a_wrong_cell_of_a_table_is_named(
    row: int, column: int, value: str, words: tuple[str, ...], workspace: Workspace
) -> None:
    rows = table_rows()
    rows[row][column] = value
    workspace.assert_refused(run_table(workspace, rows), *words)


def test_a_row_with_too_many_cells_is_named(workspace: Workspace) -> None:
    rows = table_rows()
    rows[2].append("more")
    workspace.assert_refused(run_table(workspace, rows), "own.csv, line 3: a row must have 3 values", "got 4")


def test_an_empty_table_is_refused(workspace: Workspace) -> None:
    workspace.assert_refused(run_table(workspace, []), "own.csv must have a column 'path', got none")


def test_a_table_without_rows_is_refused(workspace: Workspace) -> None:
    command = run_table(workspace, table_rows()[:1])
    workspace.assert_refused(command, "must have one row per image, and has none")


def test_a_table_of_another_format_is_refused(workspace: Workspace) -> None:
    command = run_table(workspace, table_rows(), "own.xlsx")
    workspace.assert_refused(command, "must end in .csv, .tsv, .txt or .parquet, got 'own.xlsx'")


def test_a_damaged_parquet_file_is_named(workspace: Workspace) -> None:
    workspace.assert_refused(run_table(workspace, table_rows(), "own.parquet"), "own.parquet")


def test_a_folder_in_place_of_a_table_is_refused(workspace: Workspace) -> None:
    command = workspace.run(data={"name": "table", "file": str(workspace.data)})
    workspace.assert_refused(command, "`file` must be a table", "no such file")


# -- split files -----------------------------------------------------------------------------------------------------
SPLIT_FILE = "split_zhou_Caltech101.json"


def run_split_file(workspace: Workspace, text: str) -> list[str]:
    """The command for Caltech-101 in miniature with this split file."""
    root, section = workspace.benchmark("caltech101")
    (root / "caltech-101" / SPLIT_FILE).write_text(text)
    return workspace.run(data=section)


def split_file(workspace: Workspace) -> Any:
    """The content of Caltech-101's split file in miniature."""
    root, _ = workspace.benchmark("caltech101")
    return json.loads((root / "caltech-101" / SPLIT_FILE).read_text())


def test_a_truncated_split_file_is_named(workspace: Workspace) -> None:
    text = json.dumps(split_file(workspace))[:100]
    workspace.assert_refused(run_split_file(workspace, text), f"{SPLIT_FILE} must hold JSON", "train, val and test")


def test_a_split_file_without_val_is_named(workspace: Workspace) -> None:
    content = split_file(workspace)
    del content["val"]
    command = run_split_file(workspace, json.dumps(content))
    workspace.assert_refused(command, f"{SPLIT_FILE} must hold train, val, test", "'val'")


@pytest.mark.parametrize(
    ("position", "value", "words"),
    [
        (1, "0", (SPLIT_FILE, "entry 0 of 'train' is ['face/train 0.jpg', '0', 'face']")),
        (0, "gone.jpg", ("1 of 40 images is not in", "gone.jpg", "data.on_error")),
        (0, "../gone.jpg", ("entry 0 of 'train'", "must stay below `root`", "../gone.jpg")),
    ],
    ids=["label as a string", "missing image", "path that leads out"],
)
def test_a_wrong_entry_of_a_split_file_is_named(
    position: int, value: str, words: tuple[str, ...], workspace: Workspace
) -> None:
    content = split_file(workspace)
    content["train"][0][position] = value
    workspace.assert_refused(run_split_file(workspace, json.dumps(content)), *words)


# -- other formats ---------------------------------------------------------------------------------------------------
def test_damaged_taxa_are_named(workspace: Workspace) -> None:
    root, section = workspace.benchmark("inat2018")
    (root.parent / "inat_lists" / "categories.json").write_text("[{")
    workspace.assert_refused(workspace.run(data=section), "categories.json must hold JSON", "it must list taxa")


def test_a_truncated_cifar_batch_is_named(workspace: Workspace) -> None:
    root, section = workspace.benchmark("cifar10_lt")
    file = root / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes()[:1000])
    words = ("data_batch_1", "cannot be read as a batch of CIFAR", "unpack the archive again")
    workspace.assert_refused(workspace.run(data=section), *words)


class MakesFolder:
    """An object whose unpickling makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_cifar_batch_that_would_run_code_is_refused(workspace: Workspace) -> None:
    root, section = workspace.benchmark("cifar10_lt")
    content = {"data": MakesFolder(workspace.folder / "made")}
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    workspace.assert_refused(workspace.run(data=section), "data_batch_1", "which data does not need")
    assert not (workspace.folder / "made").exists()


def shard_of(workspace: Workspace) -> tuple[Path, list[str]]:
    """The first shard of a WebDataset in miniature, and the command for the dataset."""
    root, section = workspace.benchmark("webdataset")
    return root / "own-train-000000.tar", workspace.run(data=section)


def test_a_truncated_shard_is_named(workspace: Workspace) -> None:
    shard, command = shard_of(workspace)
    shard.write_bytes(shard.read_bytes()[:700])
    workspace.assert_refused(command, "own-train-000000.tar cannot be read", "copy it again")


def test_a_compressed_shard_is_refused(workspace: Workspace) -> None:
    shard, command = shard_of(workspace)
    with tarfile.open(shard, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("0.jpg"), io.BytesIO())
    workspace.assert_refused(command, "own-train-000000.tar cannot be read", "unpack a compressed one")


def test_a_shard_whose_paths_lead_out_is_refused(workspace: Workspace) -> None:
    shard, command = shard_of(workspace)
    write_tar(shard, {"../0.jpg": encoded(".jpg", 0), "../0.cls": b"0"})
    workspace.assert_refused(command, "own-train-000000.tar holds '../0.jpg'", "leads out of the shard")


def test_an_image_without_a_label_in_a_shard_is_named(workspace: Workspace) -> None:
    shard, command = shard_of(workspace)
    write_tar(shard, {"0.jpg": encoded(".jpg", 0)})
    workspace.assert_refused(command, "every image must have a label", "'0'", "`label_file`")
