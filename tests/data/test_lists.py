"""List files, complete and broken, and the real ones of the benchmarks."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.class_names import distinct, imagenet_names, of_wnids, read_names
from imbalance_vlm.data.lists import (
    LabelledPaths,
    check_labels,
    existing,
    file_splits,
    find,
    read_existing,
    read_list,
)
from imbalance_vlm.data.long_tailed import class_folders, species_names
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.long_tail import LongTail
from tests.data.miniatures import write_image
from tests.data.shared import LISTS, needs_lists


def write(folder: Path, text: str) -> Path:
    file = folder / "list.txt"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_path_may_hold_spaces_and_digits(tmp_path: Path) -> None:
    listed = read_list(write(tmp_path, "a b/c 1.jpg 0\n\n  x/2.jpg 1  \nd.jpg\t 12\n"))
    assert listed.paths == ("a b/c 1.jpg", "x/2.jpg", "d.jpg")
    assert listed.labels.tolist() == [0, 1, 12]


def test_a_byte_order_mark_and_windows_line_ends_are_no_part_of_a_path(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa.jpg 0\r\nb.jpg 1\r\n")
    assert read_list(file).paths == ("a.jpg", "b.jpg")


@pytest.mark.parametrize("line", ["a.jpg", "0", "a.jpg -1", "a.jpg 1.5", "a.jpg cat", "a.jpg,0", "a.jpg \u0663"])
def test_a_wrong_line_is_quoted_with_its_number(tmp_path: Path, line: str) -> None:
    with pytest.raises(InputError) as error:
        read_list(write(tmp_path, f"ok.jpg 0\n{line}\n"))
    message = str(error.value)
    assert "list.txt, line 2: must be one `relative/path label` per line" in message
    assert repr(line) in message


@pytest.mark.parametrize("path", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "C:\\x.jpg", "a\\..\\x.jpg"])
def test_a_path_that_leads_out_of_root_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError, match=r"line 1: the path must stay below `root`"):
        read_list(write(tmp_path, f"{path} 0\n"))


def test_empty_and_binary_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and is empty"):
        read_list(write(tmp_path, "\n \n"))
    (tmp_path / "list.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="must be a text file in UTF-8"):
        read_list(tmp_path / "list.txt")


def test_gaps_in_the_labels_are_named() -> None:
    whole = LabelledPaths(("a", "b", "c"), np.array([0, 1, 2]))
    assert check_labels({Path("train.txt"): whole}) == 3
    with pytest.raises(InputError, match=r"without gaps, but 2 of them have no line in train.txt: 1, 2; are"):
        check_labels({Path("train.txt"): LabelledPaths(("a", "b"), np.array([0, 3]))})
    with pytest.raises(InputError, match=r"0 to 2000000000 \(the highest, in train.txt: 'b'\).*: 1, 2, 3, 4, 5 ..."):
        check_labels({Path("train.txt"): LabelledPaths(("a", "b"), np.array([0, 2_000_000_000]))})


def test_the_error_for_a_missing_list_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        find("x.txt", [tmp_path, tmp_path / "lists"], "one word a line", "the release of Someone")
    for words in ("x.txt is missing", str(tmp_path / "lists"), "one word a line", "the release of Someone", "`lists`"):
        assert words in str(error.value)


@pytest.mark.parametrize("number", [3, 40])  # few files are asked for one by one, many by the names in their folder
def test_missing_images_are_counted_and_the_first_five_shown(tmp_path: Path, number: int) -> None:
    paths = tuple(f"a/{row}.png" for row in range(number * 10))
    for path in paths[number:]:
        write_image(tmp_path / path)
    lists = {
        name: LabelledPaths(paths[start::2], np.zeros(len(paths[start::2]), np.int64))
        for start, name in enumerate(("train", "test"))
    }
    listing = Listing(name="x", class_names=("a",), splits=file_splits(tmp_path, lists))
    assert existing(tmp_path, paths).tolist() == [row >= number for row in range(len(paths))]
    with pytest.raises(InputError) as error:
        read_existing(listing, "raise")
    message = str(error.value)
    assert f"{number} of {number * 10} images are not in" in message
    assert message.count("\n  - a/") == min(number, 5)
    assert "set data.on_error to skip" in message
    data = read_existing(listing, "skip")
    assert sum(map(len, data.splits.values())) == number * 9
    assert data.skipped == sorted(paths[:number])


def test_a_wrong_root_is_distinguished_from_missing_images(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC").mkdir()
    lists = {"train": LabelledPaths(("train/a/1.jpg", "train/a/2.jpg"), np.array([0, 0]))}
    listing = Listing(name="x", class_names=("a",), splits=file_splits(tmp_path, lists))
    for on_error in ("raise", "skip"):  # a dataset without any image is always an error
        with pytest.raises(InputError, match=r"Is `root` the folder that holds 'train'\? It holds: ILSVRC"):
            read_existing(listing, on_error)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no such folder"):
        file_splits(tmp_path / "nowhere", lists)


def test_a_class_has_one_folder_and_one_label() -> None:
    one = LabelledPaths(("a/1", "a/2", "b/1"), np.array([0, 0, 1]))
    assert class_folders({Path("t.txt"): one}, 2) == ["a", "b"]
    with pytest.raises(InputError, match="`b/1 0` does not go with the other lines, where label 0 is 'a'"):
        class_folders({Path("t.txt"): LabelledPaths(("a/1", "b/1"), np.array([0, 0]))}, 1)
    with pytest.raises(InputError, match="`a/1 2` does not go with the other lines, where 'a' has label 0"):
        class_folders({Path("t.txt"): one, Path("v.txt"): LabelledPaths(("a/1",), np.array([2]))}, 3)


def test_equal_class_names_are_made_distinct() -> None:
    assert distinct(["a", "b"], ["x", "y"]) == ("a", "b")
    assert distinct(["a", "a"], ["x", "y"]) == ("a (x)", "a (y)")


def test_the_names_of_imagenet_are_all_different() -> None:
    names = of_wnids(list(imagenet_names()))
    assert len(set(names)) == 1000
    assert [name for name in names if "missile" in name or "sunglasses" in name] == [
        "missile",
        "missile (projectile)",
        "sunglasses (sunglass)",
        "sunglasses (dark glasses)",
    ]


def test_a_file_of_class_names_and_its_mistakes(tmp_path: Path) -> None:
    assert of_wnids(["n02", "n01"], write(tmp_path, "n01 tench\nn02 gold_fish\n")) == ("gold fish", "tench")
    with pytest.raises(InputError, match="got 'n03'"):
        of_wnids(["n03"], tmp_path / "list.txt")
    for text, word in (("n01 a\nn01 b\n", "comes twice"), ("n01\n", "`identifier name`")):
        with pytest.raises(InputError, match=word):
            read_names(write(tmp_path, text))


# -- the real lists --------------------------------------------------------------------------------------------------
@needs_lists
def test_imagenet_lt_counts_and_groups() -> None:
    tail = LongTail(json.loads((LISTS / "ImageNet_LT_train_counts.json").read_text()))
    assert (tail.num_classes, tail.counts.sum(), tail.counts.max(), tail.counts.min()) == (1000, 115_846, 1280, 5)
    assert [len(tail.groups[group]) for group in ("many", "medium", "few")] == [385, 479, 136]
    lists = {
        LISTS / f"ImageNet_LT_{split}.txt": read_list(LISTS / f"ImageNet_LT_{split}.txt") for split in ("val", "test")
    }
    assert [len(listed.paths) for listed in lists.values()] == [20_000, 50_000]
    wnids = class_folders(lists, check_labels(lists))
    assert wnids == list(imagenet_names())
    assert read_names(LISTS / "ImageNet_classnames.txt") == imagenet_names()


@needs_lists
def test_places_lt_counts_and_groups() -> None:
    files = [LISTS / f"Places_LT_{split}.txt" for split in ("train", "val", "test")]
    lists = {file: read_list(file) for file in files}
    assert [len(listed.paths) for listed in lists.values()] == [62_500, 7_300, 36_500]
    assert check_labels(lists) == 365
    tail = LongTail(np.bincount(lists[files[0]].labels))
    assert (tail.counts.max(), tail.counts.min()) == (4980, 5)
    assert [len(tail.groups[group]) for group in ("many", "medium", "few")] == [131, 163, 71]
    places = read_names(LISTS / "Places365_classnames.txt")
    assert set(class_folders(lists, 365)) == set(places)


@needs_lists
def test_inat_lists_and_taxa() -> None:
    listed = read_list(LISTS / "iNaturalist18_val.txt")
    assert len(listed.paths) == 24_426
    assert check_labels({Path("val"): listed}) == 8142
    assert set(Counter(listed.labels.tolist()).values()) == {3}
    folders = class_folders({Path("val"): listed}, 8142)
    names = species_names(LISTS / "iNaturalist18_categories.json", folders, "scientific")
    assert len(set(names)) == 8142
    assert names[0] == "Hermodice carunculata"
    taxonomic = species_names(LISTS / "iNaturalist18_categories.json", folders, "taxonomic")
    assert taxonomic[0] == "Hermodice carunculata, a species of Amphinomidae"
