"""The eleven few-shot datasets and the variants of ImageNet, in miniature, and the real split files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.dataset import Dataset
from imbalance_vlm.data.few_shot import FEW_SHOT, VARIANTS, read_split_file
from imbalance_vlm.data.lists import file_splits, read_existing
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.data.reader import Listing
from imbalance_vlm.data.subsets import base_novel, few_shot, with_decay
from tests.data import miniatures
from tests.data.shared import LISTS, needs_lists

TEMPLATES = {
    "caltech101": "a photo of a {}.",
    "oxford_pets": "a photo of a {}, a type of pet.",
    "stanford_cars": "a photo of a {}.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "food101": "a photo of {}, a type of food.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "sun397": "a photo of a {}.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "ucf101": "a photo of a person doing {}.",
    "imagenet": "a photo of a {}.",
}


def build(section: dict[str, Any], **more: Any) -> Dataset:
    return create_dataset(**section | more)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_dataset_has_its_layout_and_template(name: str, tmp_path: Path) -> None:
    section = miniatures.MINIATURES[name](tmp_path)
    data = build(section)
    assert data.templates == (TEMPLATES[name],)
    assert data.counts.tolist() == [5] * 4
    assert data.splits["test"].counts(4).tolist() == [2] * 4
    assert ("val" in data.splits) == (name != "imagenet")
    data.splits["train"].images[0].load()


@pytest.mark.parametrize("name", ["caltech101", "stanford_cars", "fgvc_aircraft", "imagenet", "imagenet_r"])
def test_root_may_be_the_folder_of_one_dataset(name: str, tmp_path: Path) -> None:
    section = miniatures.MINIATURES[name](tmp_path)
    (own,) = (folder for folder in Path(section["root"]).iterdir() if folder.is_dir())
    moved = Path(shutil.move(own, tmp_path / "anything"))
    assert build(section | {"root": str(moved)}).num_classes == 4


def test_names_are_words(tmp_path: Path) -> None:
    assert build(miniatures.MINIATURES["ucf101"](tmp_path)).class_names[0] == "Apply Eye Makeup"


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_are_for_testing_only(name: str, tmp_path: Path) -> None:
    data = build(miniatures.MINIATURES[name](tmp_path))
    assert data.test_only
    assert set(data.splits) == {"test"}
    expected = ("tench", "goldfish", "missile", "missile (projectile)")
    assert data.class_names == (
        expected if name != "imagenet_v2" else ("tench", "great white shark", "brambling", "toilet paper")
    )
    assert data.splits["test"].counts(4).tolist() == [2] * 4
    with pytest.raises(InputError, match="is for testing only"):
        few_shot(data, 1)


def test_a_class_folder_that_is_no_wnid_is_refused(tmp_path: Path) -> None:
    section = miniatures.MINIATURES["imagenet_a"](tmp_path)
    miniatures.write_image(tmp_path / "few_shot/imagenet-adversarial/imagenet-a/cats/1.jpg")
    with pytest.raises(InputError, match="must be a wnid that the list of the 1000 ImageNet classes names.*got 'cats'"):
        build(section)


def test_imagenet_whose_val_is_not_sorted_is_refused(tmp_path: Path) -> None:
    section = miniatures.MINIATURES["imagenet"](tmp_path)
    val = tmp_path / "few_shot/imagenet/images/val"
    shutil.rmtree(val / "n01440764")
    with pytest.raises(InputError, match="'n01440764' in only one of them; is val/ sorted into wnid folders"):
        build(section)
    shutil.rmtree(val)
    with pytest.raises(InputError, match="val must be a folder of class folders"):
        build(section)


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    section = miniatures.MINIATURES["imagenet_sketch"](tmp_path)
    (tmp_path / "few_shot/imagenet-sketch/images/n01440764/.hidden").touch()
    for file in (tmp_path / "few_shot/imagenet-sketch/images/n01440764").glob("*.jpeg"):
        file.unlink()
    with pytest.raises(InputError, match="n01440764 must hold images"):
        build(section)


def change(change_line: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    def changed(content: dict[str, Any]) -> dict[str, Any]:
        content["train"][3] = change_line(content["train"][3])
        return content

    return changed


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda content: [], "must hold train, val and test in JSON"),
        (lambda content: {"train": content["train"]}, "has no 'val'"),
        (lambda content: content | {"val": []}, "'val' is empty"),
        (change(lambda line: line[:2]), "entry 3 of 'train' is ['banded/train 3.jpg', 0]"),
        (change(lambda line: [line[0], "0", line[2]]), "entry 3 of 'train'"),
        (change(lambda line: [line[0], True, line[2]]), "entry 3 of 'train'"),
        (change(lambda line: [line[0], -1, line[2]]), "entry 3 of 'train'"),
        (change(lambda line: ["../../x.jpg", 0, line[2]]), "the path must stay below `root`"),
        (change(lambda line: [line[0], 0, "striped"]), "one class name, got 'banded' and 'striped' for label 0"),
        (change(lambda line: [line[0], 7, "striped"]), "without gaps, but 3 of them"),
        (change(lambda line: ["banded/no.jpg", 0, line[2]]), "1 of 40 images is not in"),
        (change(lambda line: [line[0], 4, "banded"]), "'banded' more than once"),
    ],
)
def test_a_broken_split_file_is_refused(tmp_path: Path, broken: Callable[[Any], Any], words: str) -> None:
    section = miniatures.MINIATURES["dtd"](tmp_path)
    file = next(tmp_path.rglob("split_zhou_*.json"))
    file.write_text(json.dumps(broken(json.loads(file.read_text()))))
    with pytest.raises(InputError) as error:
        build(section)
    assert words in str(error.value)


def test_a_missing_split_file_is_explained(tmp_path: Path) -> None:
    section = miniatures.MINIATURES["eurosat"](tmp_path)
    next(tmp_path.rglob("split_zhou_*.json")).unlink()
    with pytest.raises(InputError, match="split_zhou_EuroSAT.json is missing.*CoOp"):
        build(section)
    with pytest.raises(InputError, match="split_zhou_EuroSAT.json is missing"):
        build(section, root=tmp_path / "nowhere")


@pytest.mark.parametrize("line", ["0034309", "0034309 Concorde", "../x 707-320"])
def test_a_broken_aircraft_list_is_refused(tmp_path: Path, line: str) -> None:
    section = miniatures.MINIATURES["fgvc_aircraft"](tmp_path)
    file = next(tmp_path.rglob("images_variant_val.txt"))
    file.write_text(f"{line}\n" + file.read_text())
    with pytest.raises(InputError, match="images_variant_val.txt, line 1: must be `image variant`"):
        build(section)


# -- the real split files --------------------------------------------------------------------------------------------
REAL = {
    "Caltech101": (50, 50),
    "OxfordPets": (19, 18),
    "OxfordFlowers": (51, 51),
    "DescribableTextures": (24, 23),
    "EuroSAT": (5, 5),
}


@needs_lists
@pytest.mark.parametrize("name", REAL)
def test_real_split_files_parse_and_cut_into_base_and_novel(name: str, tmp_path: Path) -> None:
    listed, names = read_split_file(LISTS / f"split_zhou_{name}.json")
    assert len(set(names)) == sum(REAL[name])
    # One image per class and split is enough; the class names and labels are the real ones.
    for lines in listed.values():
        first = {int(label): path for path, label in zip(reversed(lines.paths), reversed(lines.labels), strict=True)}
        for path in list(first.values()):
            miniatures.write_image(tmp_path / path)
    data = read_existing(Listing(name=name, class_names=names, splits=file_splits(tmp_path, listed)), "skip")
    base, novel = base_novel(data)
    assert (base.num_classes, novel.num_classes) == REAL[name]
    assert base.class_names + novel.class_names == names
    assert sum(len(part) for part in data.splits.values()) + len(data.skipped) == sum(
        len(lines.paths) for lines in listed.values()
    )


@needs_lists
def test_eurosat_base_at_the_steepest_decay_is_28_images() -> None:
    from imbalance_vlm.data.dataset import FileImages, Split

    listed, names = read_split_file(LISTS / "split_zhou_EuroSAT.json")
    data = Dataset(
        "eurosat", names, {split: Split(FileImages(LISTS, part.paths), part.labels) for split, part in listed.items()}
    )
    base = with_decay(base_novel(few_shot(data, 16, seed=1))[0], 16, 0.06)
    assert len(base.splits["train"]) == 28
    assert sorted(base.counts.tolist()) == [1, 1, 3, 7, 16]
    assert len(base.splits["val"]) == 5 * 4
    assert np.array_equal(base.splits["test"].labels, data.splits["test"].labels[data.splits["test"].labels < 5])


def test_there_are_eleven_datasets() -> None:
    assert {*FEW_SHOT, "fgvc_aircraft", "imagenet"} == set(TEMPLATES)
    assert len(TEMPLATES) == 11
