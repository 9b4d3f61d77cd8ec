"""Miniatures of every dataset in its real layout, with real class names: a few classes with a few images each.

`MINIATURES[name](folder)` writes one below `folder` and returns the `data` section of a recipe for it.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imbalance_vlm.data.few_shot import FEW_SHOT, VARIANTS

Section = dict[str, Any]

TRAIN_COUNTS = (6, 4, 3, 2)
"""Training images of the four classes of a long-tailed miniature; each has two more to validate and to test on."""
WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n03773504": "missile", "n04008634": "missile"}
PLACES = ("airfield", "airplane_cabin", "apartment_building-outdoor", "zen_garden")
SPECIES = (("Hermodice carunculata", "Amphinomidae"), ("Phragmatopoma californica", "Sabellariidae"),
           ("Eudistylia vancouveri", "Sabellidae"), ("Serpula columbiana", "Serpulidae"))  # fmt: skip
VARIANTS_OF_AIRCRAFT = ("707-320", "727-200", "A300B4", "Spitfire")
FEW_SHOT_NAMES = {
    "caltech101": ("face", "leopard", "motorbike", "accordion"),
    "oxford_pets": ("abyssinian", "american_bulldog", "beagle", "siamese"),
    "stanford_cars": ("2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 BMW X6 SUV", "2007 Audi S4 Sedan"),
    "oxford_flowers": ("pink primrose", "hard-leaved pocket orchid", "canterbury bells", "sweet pea"),
    "food101": ("apple_pie", "baby_back_ribs", "baklava", "waffles"),
    "sun397": ("abbey", "airplane_cabin", "airport_terminal", "zoo"),
    "dtd": ("banded", "blotchy", "braided", "zigzagged"),
    "eurosat": ("Annual Crop Land", "Forest", "Highway or Road", "Sea or Lake"),
    "ucf101": ("Apply_Eye_Makeup", "Archery", "Baby_Crawling", "Yo_Yo"),
}
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def file_states(root: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of all files and folders below."""
    statuses = {str(path): path.lstat() for path in root.rglob("*")}
    return {path: (status.st_size, status.st_mtime_ns) for path, status in statuses.items()}


def write_image(file: Path, shade: int = 0, size: int = 8) -> None:
    """A small noisy image with a colour by its shade, a format by its suffix and noise by the last two path parts."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(encoded(file.suffix, shade, size, zlib.crc32("/".join(file.parts[-2:]).encode())))


def encoded(suffix: str, shade: int, size: int = 8, noise: int = 0) -> bytes:
    colour = np.random.default_rng(shade).integers(40, 216, 3)
    rng = np.random.default_rng([shade, noise])
    pixels = np.clip(colour + rng.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG" if suffix.lower() == ".png" else "JPEG")
    return stream.getvalue()


def write_list(root: Path, file: Path, lines: Sequence[tuple[str, int]]) -> None:
    """A list file and the images that it names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{path} {label}\n" for path, label in lines), encoding="utf-8")
    for path, label in lines:
        write_image(root / path, label)


def imagenet_lt(folder: Path) -> Section:
    root = folder / "ImageNet"
    train, val, test = [], [], []
    for label, wnid in enumerate(WNIDS):
        train += [(f"train/{wnid}/{wnid}_{number}.JPEG", label) for number in range(TRAIN_COUNTS[label])]
        val += [(f"train/{wnid}/{wnid}_9{number}.JPEG", label) for number in range(2)]
        test += [(f"val/{wnid}/ILSVRC2012_val_0000{label}{number}.JPEG", label) for number in range(2)]
    for split, lines in (("train", train), ("val", val), ("test", test)):
        write_list(root, root / f"ImageNet_LT_{split}.txt", lines)
    return {"name": "imagenet_lt", "root": str(root)}


def places_lt(folder: Path) -> Section:
    root = folder / "Places"
    train, val, test = [], [], []
    for label, place in enumerate(PLACES):
        train += [(f"train/{place}/0000000{number}.jpg", label) for number in range(TRAIN_COUNTS[label])]
        val += [(f"train/{place}/0000100{number}.jpg", label) for number in range(2)]
        test += [(f"val/{place}/Places365_val_000{label}{number}.jpg", label) for number in range(2)]
    for split, lines in (("train", train), ("val", val), ("test", test)):
        write_list(root, root / "lists" / f"Places_LT_{split}.txt", lines)
    return {"name": "places_lt", "root": str(root)}


def inat2018(folder: Path) -> Section:
    root, lists = folder / "iNat", folder / "inat_lists"
    kinds = ("train", TRAIN_COUNTS), ("val", (3, 3, 3, 3))
    for kind, counts in kinds:
        lines = [
            (f"train_val2018/Animalia/{label}/{kind}{number}c7.jpg", label)
            for label in range(4)
            for number in range(counts[label])
        ]
        write_list(root, lists / f"iNaturalist18_{kind}.txt", lines)
    taxa = [
        {"id": label, "name": name, "family": family, "genus": name.split()[0], "kingdom": "Animalia"}
        for label, (name, family) in enumerate(SPECIES)
    ]
    (lists / "categories.json").write_text(json.dumps(taxa), encoding="utf-8")
    return {"name": "inat2018", "root": str(root), "lists": str(lists)}


def write_batch(file: Path, labels: Sequence[int], key: str) -> None:
    """Images in CIFAR's form, 3072 bytes per row; a row begins with its number, so that a draw can be followed."""
    rng = np.random.default_rng(zlib.crc32(file.name.encode()))
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    data[:, 0], data[:, 1] = np.arange(len(labels)) % 256, np.arange(len(labels)) // 256
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        pickle.dump({b"data": data, key.encode(): list(labels), b"filenames": []}, stream, protocol=2)


def cifar10_lt(folder: Path) -> Section:
    place = folder / "cifar" / "cifar-10-batches-py"
    for number in range(1, 6):
        write_batch(place / f"data_batch_{number}", list(range(10)) * 4, "labels")
    write_batch(place / "test_batch", list(range(10)) * 2, "labels")
    with (place / "batches.meta").open("wb") as stream:
        pickle.dump({b"label_names": list(CIFAR10)}, stream, protocol=2)
    return {"name": "cifar10_lt", "root": str(folder / "cifar"), "imbalance": 10}


def cifar100_lt(folder: Path) -> Section:
    place = folder / "cifar" / "cifar-100-python"
    write_batch(place / "train", list(range(100)) * 6, "fine_labels")
    write_batch(place / "test", list(range(100)), "fine_labels")
    with (place / "meta").open("wb") as stream:
        names = ["maple_tree", "apple", *(f"fine_class_{label}" for label in range(2, 100))]
        pickle.dump({b"fine_label_names": names}, stream, protocol=2)
    return {"name": "cifar100_lt", "root": str(folder / "cifar"), "imbalance": 3}


def few_shot(name: str, per_class: Mapping[str, int] | None = None) -> Callable[[Path], Section]:
    """A dataset with a split file: four classes, each with 5 images to train, 3 to validate and 2 to test on."""
    described = FEW_SHOT[name]
    per_class = per_class or {"train": 5, "val": 3, "test": 2}

    def write(folder: Path) -> Section:
        own = folder / "few_shot" / described.folder
        splits: dict[str, list[list[Any]]] = {}
        for split, count in per_class.items():
            lines = splits.setdefault(split, [])
            for label, class_name in enumerate(FEW_SHOT_NAMES[name]):
                for number in range(count):
                    path = f"{class_name.replace(' ', '_')}/{split} {number}.jpg"
                    lines.append([path, label, class_name])
                    write_image(own / described.images / path, label)
        own.joinpath(f"split_zhou_{described.split}.json").write_text(json.dumps(splits), encoding="utf-8")
        return {"name": name, "root": str(folder / "few_shot")}

    return write


def fgvc_aircraft(folder: Path) -> Section:
    own = folder / "few_shot" / "fgvc_aircraft"
    own.mkdir(parents=True, exist_ok=True)
    (own / "variants.txt").write_text("".join(f"{variant}\n" for variant in VARIANTS_OF_AIRCRAFT))
    for number, (split, count) in enumerate({"train": 5, "val": 3, "test": 2}.items()):
        lines = []
        for label, variant in enumerate(VARIANTS_OF_AIRCRAFT):
            for which in range(count):
                image = f"{number}{label}{which:05d}"
                lines.append(f"{image} {variant}\n")
                write_image(own / "images" / f"{image}.jpg", label)
        (own / f"images_variant_{split}.txt").write_text("".join(lines))
    return {"name": "fgvc_aircraft", "root": str(folder / "few_shot")}


def imagenet(folder: Path) -> Section:
    images = folder / "few_shot" / "imagenet" / "images"
    for label, wnid in enumerate(WNIDS):
        for number in range(5):
            write_image(images / "train" / wnid / f"{wnid}_{number}.JPEG", label)
        for number in range(2):
            write_image(images / "val" / wnid / f"ILSVRC2012_val_000{label}{number}.JPEG", label)
    return {"name": "imagenet", "root": str(folder / "few_shot")}


def variant(name: str) -> Callable[[Path], Section]:
    """A variant of ImageNet: two test images per class folder; ImageNet-V2 names the folders by labels."""
    own, images = VARIANTS[name]
    folders = ("0", "2", "10", "999") if name == "imagenet_v2" else tuple(WNIDS)

    def write(folder: Path) -> Section:
        for label, class_folder in enumerate(folders):
            for number in range(2):
                write_image(folder / "few_shot" / own / images / class_folder / f"{number}.jpeg", label)
        return {"name": name, "root": str(folder / "few_shot")}

    return write


USER_CLASSES = {"red apple": 6, "green leaf": 4, "blue car": 3, "white cup": 3}


def folder(folder: Path) -> Section:
    for label, (name, count) in enumerate(USER_CLASSES.items()):
        for number in range(count):
            write_image(folder / "own" / name / f"{number}.png", label)
    return {"name": "folder", "root": str(folder / "own")}


def table(folder: Path) -> Section:
    root = folder / "own"
    rows = []
    for label, (name, count) in enumerate(USER_CLASSES.items()):
        for number in range(count):
            rows.append((f"images/{name} {number}.png", name))
            write_image(root / rows[-1][0], label)
    with (root / "animals.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label"), *rows])
    return {"name": "table", "file": str(root / "animals.csv")}


def webdataset(folder: Path) -> Section:
    root = folder / "shards"
    for split, count in (("train", None), ("test", 2)):
        samples = [(label, n) for label, each in enumerate(USER_CLASSES.values()) for n in range(count or each)]
        for shard in range(2):
            members = {}
            for label, number in samples[shard::2]:
                members[f"{label}_{number}.jpg"] = encoded(
                    ".jpg", label, noise=zlib.crc32(f"{split} {number}".encode())
                )
                members[f"{label}_{number}.cls"] = str(label).encode()
            write_tar(root / f"own-{split}-00000{shard}.tar", members)
    (folder / "names.txt").write_text("\n".join(USER_CLASSES) + "\n", encoding="utf-8")
    return {"name": "webdataset", "root": str(root), "class_names": str(folder / "names.txt")}


def write_tar(file: Path, members: Mapping[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file


MINIATURES: dict[str, Callable[[Path], Section]] = {
    "imagenet_lt": imagenet_lt,
    "places_lt": places_lt,
    "inat2018": inat2018,
    "cifar10_lt": cifar10_lt,
    "cifar100_lt": cifar100_lt,
    "imagenet": imagenet,
    **{name: few_shot(name) for name in FEW_SHOT},
    "fgvc_aircraft": fgvc_aircraft,
    **{name: variant(name) for name in VARIANTS},
    "folder": folder,
    "table": table,
    "webdataset": webdataset,
}
