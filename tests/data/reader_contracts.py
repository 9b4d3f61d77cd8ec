"""What every dataset reader must do. `test_reader_contracts.py` runs these over the catalogue, and on bad readers.

A contract takes a `Source` and raises AssertionError when its reader breaks the contract. It may change the files of
the source.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from imbalance_vlm.data.dataset import has_image_name
from imbalance_vlm.data.reader import Reader
from tests.contracts import refuses
from tests.data.miniatures import file_states


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset on disk.

    Args:
        folder: holds all of its files.
        make: makes its reader.
    """

    folder: Path
    make: Callable[[], Reader]

    def files(self, images: bool) -> list[Path]:
        """The image files, or all other files."""
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return [path for path in files if has_image_name(path.name) == images]


Contract = Callable[[Source], None]


def contents(dataset: Any) -> dict[str, Any]:
    """What decides the numbers of a run: class names, and the images and labels of each split."""
    splits = {name: split.fingerprint for name, split in dataset.splits.items()}
    return {"class_names": dataset.class_names, **splits}


# -- listing and reading ---------------------------------------------------------------------------------------------
def listing_opens_no_image(source: Source) -> None:
    """Listing and identifying a million images must not decode them."""
    with mock.patch.object(Image, "open", side_effect=AssertionError("an image was opened")):
        source.make().list()
        source.make().identity()


def reading_agrees_with_listing(source: Source) -> None:
    """The listing, with its test images drawn, has the classes, images and labels of the dataset."""
    listed, read = source.make().list().divided(), source.make().read()
    assert contents(listed) == contents(read), "list() and read() give different classes, images or labels"
    assert listed.test_only == read.test_only
    assert listed.flips == read.flips
    assert listed.templates == read.templates


def reading_is_repeatable(source: Source) -> None:
    """The same files give the same dataset each time."""
    assert contents(source.make().read()) == contents(source.make().read()), "read() gives another dataset each time"


def the_order_of_folder_entries_does_not_matter(source: Source) -> None:
    """Operating systems list the entries of a folder in any order."""
    expected = contents(source.make().read())
    for descending in (False, True):
        with sorted_folders(descending):
            assert contents(source.make().read()) == expected, "read() depends on the order of folder entries"


def writes_nothing(source: Source) -> None:
    before = file_states(source.folder)
    reader = source.make()
    reader.list()
    reader.identity()
    for split in reader.read().splits.values():
        split.images[0].load()
    assert file_states(source.folder) == before, "wrote into the folder of the data"


# -- the dataset -----------------------------------------------------------------------------------------------------
def class_names_are_distinct_words(source: Source) -> None:
    names = source.make().read().class_names
    assert len(set(names)) == len(names), f"a class name twice: {names}"
    wrong = [name for name in names if not name or name != " ".join(name.split())]
    assert not wrong, f"class names must be words joined by single spaces, got {wrong}"


def labels_are_dense(source: Source) -> None:
    """Labels are 0 to C - 1, and every class has a training image (a test image, if it is for testing only)."""
    dataset = source.make().read()
    split = dataset.splits["test" if dataset.test_only else "train"]
    assert set(split.labels.tolist()) == set(range(dataset.num_classes)), "a class without images, or a label too high"


def images_have_distinct_names(source: Source) -> None:
    """No image is twice in a dataset, neither in one split nor in two."""
    splits = source.make().read().splits
    names = [split.images.name(row) for split in splits.values() for row in range(len(split))]
    assert len(set(names)) == len(names), "an image twice"


def images_are_rgb(source: Source) -> None:
    for split in source.make().read().splits.values():
        modes = {split.images[row].mode for row in range(min(len(split), 20))}
        assert modes == {"RGB"}, f"images must be RGB, got {modes}"


def images_reach_loader_workers(source: Source) -> None:
    """Images are pickled to the processes that decode them."""
    images = source.make().read().splits["test"].images
    copy = pickle.loads(pickle.dumps(images))
    assert np.array_equal(np.asarray(copy[0]), np.asarray(images[0]))
    assert copy.fingerprint == images.fingerprint, "the fingerprint changes in another process"


def templates_hold_one_place(source: Source) -> None:
    templates = source.make().read().templates
    assert templates
    assert all(template.count("{}") == 1 for template in templates), f"one {{}} per template, got {templates}"


# -- identity --------------------------------------------------------------------------------------------------------
def identity_is_stable(source: Source) -> None:
    assert source.make().identity() == source.make().identity(), "identity() changes without a change of the files"


def identity_changes_with_an_image(source: Source) -> None:
    """Removing an image changes the identity."""
    files = source.files(images=True)
    if not files:
        return  # packed images: see identity_changes_with_a_file
    before = source.make().identity()
    files[0].unlink()
    assert source.make().identity() != before, f"identity() does not notice that {files[0].name} is gone"


def identity_changes_with_a_file(source: Source) -> None:
    """Changing any list, table, batch, shard or file of names changes the identity."""
    for file in source.files(images=False):
        before = source.make().identity()
        file.write_bytes(file.read_bytes() + (bytes(512) if file.suffix == ".tar" else b"\n"))
        assert source.make().identity() != before, f"identity() does not notice that {file.name} changed"


# -- errors and settings ---------------------------------------------------------------------------------------------
def a_missing_source_is_named(source: Source) -> None:
    """Without its files, a reader raises an InputError that says where they were expected."""
    source.folder.rename(source.folder.with_name("moved"))
    refuses(lambda: source.make().read(), str(source.folder), "a dataset whose files are gone")


def settings_are_frozen_keywords(source: Source) -> None:
    """A reader is a frozen dataclass whose settings are keyword-only; a positional `name` comes from the recipe."""
    reader: Any = source.make()
    assert dataclasses.is_dataclass(reader), "a reader is a dataclass"
    assert reader.__dataclass_params__.frozen, "a reader is frozen"  # type: ignore[attr-defined]
    for field in dataclasses.fields(reader):
        assert field.kw_only == (field.name != "name"), f"`{field.name}` must be keyword-only, unless it is `name`"


CONTRACTS: tuple[Contract, ...] = (
    listing_opens_no_image,
    reading_agrees_with_listing,
    reading_is_repeatable,
    the_order_of_folder_entries_does_not_matter,
    writes_nothing,
    class_names_are_distinct_words,
    labels_are_dense,
    images_have_distinct_names,
    images_are_rgb,
    images_reach_loader_workers,
    templates_hold_one_place,
    identity_is_stable,
    identity_changes_with_an_image,
    identity_changes_with_a_file,
    a_missing_source_is_named,
    settings_are_frozen_keywords,
)


@contextmanager
def sorted_folders(descending: bool) -> Iterator[None]:
    """Make the operating system list the entries of folders by name, ascending or descending."""
    scandir, listdir = os.scandir, os.listdir

    class Entries:
        def __init__(self, path: Any) -> None:
            with scandir(path) as entries:
                self._entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=descending))

        def __iter__(self) -> Iterator[os.DirEntry[str]]:
            return self._entries

        def __next__(self) -> os.DirEntry[str]:
            return next(self._entries)

        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None: ...

    def sorted_names(path: Any = ".") -> list[str]:
        return sorted(listdir(path), reverse=descending)

    with mock.patch.object(os, "scandir", Entries), mock.patch.object(os, "listdir", sorted_names):
        yield
