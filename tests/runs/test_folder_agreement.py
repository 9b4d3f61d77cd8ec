"""Folders with odd names, hidden files, links and suffixes: all files add up, and run, verify and predict agree."""

from __future__ import annotations

import io
import os
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.data.walk import describe_passed_over
from imbalance_vlm.runs.classifier import find_images
from imbalance_vlm.verification.collection import collect
from imbalance_vlm.verification.verify import verify

CLASSES = ("cat", "a, \"b\" 'c'", "日本", "cafe\u0301 noir", "-1", "=1+1", "x\ny", "NA", " spaced ")

stems = st.binary(max_size=8).map(lambda word: os.fsdecode(word.translate(None, b"/.\0")))
image_suffixes = st.sampled_from([".png", ".JPG", ".jpe", ".avif", ".JfIf", ".tga"])
other_suffixes = st.sampled_from([".txt", ".MPG", ".pdf", ".png~", ""])
image_kinds = st.sampled_from(
    ["image", "deep image", "link", "linked folder", "broken", "hidden folder", "second link"]
)
entries = st.tuples(image_kinds, stems, image_suffixes) | st.tuples(
    st.sampled_from(["other", "hidden", "system", "loop"]), stems, other_suffixes
)
folders = st.dictionaries(st.sampled_from(CLASSES), st.lists(entries, max_size=6), min_size=2, max_size=4)


def png(number: int) -> bytes:
    """A PNG image that differs from all others."""
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), (number // 256, number % 256, 7)).save(stream, "PNG")
    return stream.getvalue()


class Tree:
    """A folder of images made from a description, and what a reader should say of it.

    Attributes:
        used: class folder of each image by its path below the root.
        broken: class folder of each image that cannot be read.
        passed_over: the number of other files.
    """

    def __init__(self, folder: Path, described: dict[str, list[tuple[str, str, str]]]) -> None:
        self.root = folder / "root"
        self.outside = folder / "outside"
        self.used: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self.passed_over = 0
        self.number = 0
        for class_folder, listed in described.items():
            for name in ("first.png", "second.png"):
                self.used[self.write(f"{class_folder}/{name}")] = class_folder
            for kind, stem, suffix in listed:
                self.add(kind, class_folder, f"{self.number}{stem}", suffix)

    def write(self, path: str, content: bytes | None = None, root: Path | None = None) -> str:
        self.number += 1
        file = (root or self.root) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(self.number) if content is None else content)
        return path

    def add(self, kind: str, class_folder: str, stem: str, suffix: str) -> None:
        path = f"{class_folder}/{stem}{suffix}"
        if kind == "image":
            self.used[self.write(path)] = class_folder
        elif kind == "deep image":
            self.used[self.write(f"{class_folder}/{stem}/{stem}{suffix}")] = class_folder
        elif kind == "broken":
            self.broken[self.write(path, b"no image")] = class_folder
        elif kind == "link":
            self.write(stem, root=self.outside)
            (self.root / path).symlink_to(self.outside / stem)
            self.used[path] = class_folder
        elif kind == "linked folder":
            self.write(f"{stem}/x{suffix}", root=self.outside)
            (self.root / class_folder / stem).symlink_to(self.outside / stem)
            self.used[f"{class_folder}/{stem}/x{suffix}"] = class_folder
        else:
            self.passed_over += 1
            if kind == "second link":
                (self.root / path).symlink_to("first.png")
                self.number += 1
            elif kind == "loop":
                (self.root / class_folder / f"{stem}loop").symlink_to("..")
                self.number += 1
            elif kind == "hidden folder":
                self.write(f"{class_folder}/.{stem}/x{suffix}")
            elif kind == "system":
                self.write(f"{class_folder}/{stem}/__MACOSX/x.png")
            else:
                self.write(f"{class_folder}/{'.' * (kind == 'hidden')}{stem}{suffix}")


@settings(max_examples=25, deadline=None, database=None)
@given(folders)
def test_all_files_add_up_and_all_readers_agree(described: dict[str, list[tuple[str, str, str]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder), described)
        data = create_dataset("folder", root=tree.root, on_error="skip", test_fraction=0.5)
        labelled = {
            split.images.name(row): data.class_names[label]
            for split in data.splits.values()
            for row, label in enumerate(split.labels)
        }
        assert labelled == {path: " ".join(name.split()) for path, name in tree.used.items()}
        assert data.num_images == len(tree.used), "an image stands in two splits"
        assert set(data.skipped) == set(tree.broken)
        assert sum(data.passed_over.values()) == tree.passed_over

        collection = collect(tree.root)
        assert {image.name: collection.class_name(image) for image in collection.images} == labelled | {
            path: " ".join(name.split()) for path, name in tree.broken.items()
        }
        assert Counter(collection.notes)[describe_passed_over(data.passed_over)] == bool(tree.passed_over)
        assert {"unreadable": len(tree.broken)} == {"unreadable": 0} | verify(collection, near=-1).tally

        found = find_images([tree.root], "skip")
        assert set(found.images.paths) == {str(tree.root / path) for path in tree.used}
        assert set(found.unreadable) == {str(tree.root / path) for path in tree.broken}
        assert found.passed_over == data.passed_over
