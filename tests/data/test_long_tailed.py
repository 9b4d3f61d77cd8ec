"""ImageNet-LT, Places-LT and iNaturalist 2018 in miniature, and their broken forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imbalance_vlm import InputError
from imbalance_vlm.data.prepare import create_dataset
from tests.data import miniatures


def test_imagenet_lt(tmp_path: Path) -> None:
    data = create_dataset(**miniatures.imagenet_lt(tmp_path))
    assert data.class_names == ("tench", "goldfish", "missile", "missile (projectile)")
    assert data.counts.tolist() == [6, 4, 3, 2]
    assert {split: len(part) for split, part in data.splits.items()} == {"train": 15, "val": 8, "test": 8}
    assert data.splits["test"].images.name(0).startswith("val/n01440764/")


def test_imagenet_lt_with_given_class_names(tmp_path: Path) -> None:
    section = miniatures.imagenet_lt(tmp_path)
    names = tmp_path / "classnames.txt"
    names.write_text("".join(f"{wnid} my {name} {wnid[-2:]}\n" for wnid, name in miniatures.WNIDS.items()))
    assert create_dataset(**section | {"class_names": names}).class_names[0] == "my tench 64"


def test_places_are_named_by_their_folders(tmp_path: Path) -> None:
    data = create_dataset(**miniatures.places_lt(tmp_path))
    assert data.class_names == ("airfield", "airplane cabin", "apartment building outdoor", "zen garden")


def test_species_by_scientific_and_taxonomic_names(tmp_path: Path) -> None:
    section = miniatures.inat2018(tmp_path)
    assert create_dataset(**section).class_names[0] == "Hermodice carunculata"
    data = create_dataset(**section | {"names": "taxonomic"})
    assert data.templates[0].format(data.class_names[0]) == (
        "a photo of a Hermodice carunculata, a species of Amphinomidae."
    )


def test_species_by_common_names_where_they_exist(tmp_path: Path) -> None:
    section = miniatures.inat2018(tmp_path)
    with pytest.raises(InputError, match="none has one"):
        create_dataset(**section | {"names": "common"})
    file = Path(section["lists"]) / "categories.json"
    taxa = json.loads(file.read_text())
    taxa[0]["common_name"] = taxa[1]["common_name"] = "tube worm"
    taxa[3]["common_name"] = "plume worm"
    file.write_text(json.dumps(taxa))
    assert create_dataset(**section | {"names": "common"}).class_names == (
        "tube worm (Hermodice carunculata)",
        "tube worm (Phragmatopoma californica)",
        "Eudistylia vancouveri",
        "plume worm",
    )


def test_species_keep_their_names_when_labels_are_in_another_order(tmp_path: Path) -> None:
    section = miniatures.inat2018(tmp_path)
    for file in Path(section["lists"]).glob("*.txt"):
        lines = [line.rsplit(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{path} {3 - int(label)}\n" for path, label in lines))
    assert create_dataset(**section).class_names == tuple(name for name, _ in reversed(miniatures.SPECIES))


@pytest.mark.parametrize("content", ["{}", "[1]", "no json", '[{"name": "x"}]', '[{"id": 0, "name": "x"}]'])
def test_wrong_categories_are_refused(tmp_path: Path, content: str) -> None:
    section = miniatures.inat2018(tmp_path)
    (Path(section["lists"]) / "categories.json").write_text(content)
    with pytest.raises(InputError, match="categories.json must hold every taxon|it must list taxa"):
        create_dataset(**section)


@pytest.mark.parametrize(
    ("name", "missing", "origin"),
    [
        ("imagenet_lt", "ImageNet_LT_train.txt", "Liu et al., Large-Scale Long-Tailed Recognition"),
        ("places_lt", "Places_LT_val.txt", "Places-LT release of Liu et al."),
        ("inat2018", "iNaturalist18_train.txt", "iNaturalist 2018 competition"),
        ("inat2018", "categories.json", "iNaturalist 2018 competition"),
    ],
)
def test_a_missing_list_is_explained(tmp_path: Path, name: str, missing: str, origin: str) -> None:
    section = miniatures.MINIATURES[name](tmp_path)
    next(tmp_path.rglob(missing)).unlink()
    with pytest.raises(InputError) as error:
        create_dataset(**section)
    for words in (f"{missing}", "is missing", "It holds", origin):
        assert words in str(error.value)


def test_lists_are_found_in_root_in_lists_and_elsewhere(tmp_path: Path) -> None:
    section = miniatures.imagenet_lt(tmp_path)
    root = Path(section["root"])
    for place in (root / "lists", root / "ImageNet_LT", tmp_path / "elsewhere"):
        place.mkdir()
        for file in list(tmp_path.rglob("ImageNet_LT_*.txt")):
            shutil.move(file, place / file.name)
        lists = {"lists": str(place)} if place.name == "elsewhere" else {}
        assert create_dataset(**section | lists).counts.tolist() == [6, 4, 3, 2]


def test_skipped_images_are_counted(tmp_path: Path) -> None:
    section = miniatures.imagenet_lt(tmp_path)
    (Path(section["root"]) / "train/n01440764/n01440764_0.JPEG").unlink()
    with pytest.raises(InputError, match="1 of 31 images is not in"):
        create_dataset(**section)
    data = create_dataset(**section | {"on_error": "skip"})
    assert data.counts.tolist() == [5, 4, 3, 2]
    assert data.skipped == ["train/n01440764/n01440764_0.JPEG"]
