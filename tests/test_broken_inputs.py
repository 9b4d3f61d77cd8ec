"""Broken files, lists, recipes, checkpoints and folders, each through the real command line.

Each gives one clear error (exit code 2, one message on standard error that says what is wrong and what to do), or is
left out and counted, or is no mistake at all and works. Nothing hangs, nothing is half-written, and the data folder
stays as it was.
"""

from __future__ import annotations

import csv
import errno
import faulthandler
import io
import json
import os
import pickle
import shutil
import signal
import struct
import sys
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from imbalance_vlm import assembly
from imbalance_vlm.cli import main
from tests.data.miniatures import MINIATURES, encoded, write_image, write_tar

SECONDS = 20
"""After which a command counts as hanging; each takes a fraction of one second."""

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@contextmanager
def in_time() -> Iterator[None]:
    """Ends what hangs, also in a read that never comes back; one that hangs in another thread ends the process."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"still at it after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class World:
    """A folder with images of one's own and a recipe for them, for a case to break.

    Attributes:
        place: the working folder; holds data/, runs/ and the recipe.
        recipe: the recipe, written when the command is made.
        patch: undone after the test.
        encoder: the tiny model's name.
    """

    place: Path
    recipe: dict[str, Any]
    patch: Patch
    encoder: str
    before: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        return self.place / "data"

    def run(self, *arguments: str, **sections: Any) -> list[str]:
        """The command that runs the recipe with these sections in place of its own."""
        file = self.place / "recipe.yaml"
        file.write_text(yaml.safe_dump(self.recipe | sections, allow_unicode=True), encoding="utf-8")
        return ["run", str(file), *arguments, "--device", "cpu"]

    def benchmark(self, name: str) -> tuple[Path, dict[str, Any]]:
        """A miniature of a benchmark: its folder and its section."""
        section = MINIATURES[name](self.root)
        return Path(section["root"]), section

    def finished(self) -> Path:
        """The folder of a finished run."""
        assert main(self.run()) == 0
        (found,) = (self.place / "runs").rglob("result.json")
        return found.parent

    def text(self, name: str, content: str) -> Path:
        """A recipe file with this content."""
        path = self.place / name
        path.write_text(content, encoding="utf-8")
        return path


@pytest.fixture
def world(tmp_path: Path, tiny_clip: str, monkeypatch: Patch) -> Iterator[World]:
    for name, count in (("red apple", 6), ("green leaf", 4), ("blue car", 4)):
        for number in range(count):
            write_image(tmp_path / "data" / "own" / name / f"{number}.png", len(name))
    recipe = {
        "name": "broken",
        "data": {"name": "folder", "root": str(tmp_path / "data" / "own")},
        "encoder": {"name": tiny_clip},
        "tuning": "linear_probe",
        "head": "linear",
        "training": {"epochs": 1, "batch_size": 16},
    }
    assembly.dataset.cache_clear()
    yield World(tmp_path, recipe, monkeypatch, tiny_clip)
    assembly.dataset.cache_clear()


def everything(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all files and folders below."""
    return {
        str(path): (status.st_size, status.st_mtime_ns) for path in root.rglob("*") if (status := path.lstat()) or True
    }


def results(place: Path) -> set[Path]:
    """What a run leaves behind; locks, and what another start goes on with, are none of it."""
    ends = ("result.json", ".safetensors", ".csv", ".md", ".tmp", ".png")
    return {path for path in place.rglob("*") if path.is_file() and path.name.endswith(ends)}


Case = Callable[[World], list[str]]
ERRORS: dict[str, tuple[Case, tuple[str, ...]]] = {}
COUNTED: dict[str, tuple[Case, int]] = {}
WORKS: dict[str, Case] = {}


def error(name: str, *words: str) -> Callable[[Case], Case]:
    """Registers a case that must end in one error with all of these words."""

    def add(case: Case) -> Case:
        assert name not in ERRORS, f"'{name}' is there twice"
        ERRORS[name] = case, words
        return case

    return add


def counted(name: str, skipped: int) -> Callable[[Case], Case]:
    """Registers a case in which so many images are left out and counted."""

    def add(case: Case) -> Case:
        COUNTED[name] = case, skipped
        return case

    return add


def works(name: str) -> Callable[[Case], Case]:
    """Registers a case that looks odd and is no mistake."""

    def add(case: Case) -> Case:
        WORKS[name] = case
        return case

    return add


# -- images --------------------------------------------------------------------------------------------------------
def _spoil(world: World, content: bytes, name: str = "bad.jpg") -> Path:
    path = world.root / "own" / "red apple" / name
    path.write_bytes(content)
    return path


@error("zero-byte image", "1 image cannot be read", "red apple/bad.jpg", "data.on_error to skip")
def _(world: World) -> list[str]:
    _spoil(world, b"")
    return world.run()


@error("truncated JPEG", "1 image cannot be read", "red apple/bad.jpg", "truncated", "data.on_error")
def _(world: World) -> list[str]:
    whole = encoded(".jpg", 1, 64)
    _spoil(world, whole[: len(whole) // 2])
    return world.run()


@error("truncated PNG", "1 image cannot be read", "red apple/bad.png", "data.on_error")
def _(world: World) -> list[str]:
    whole = encoded(".png", 1, 64)
    _spoil(world, whole[: len(whole) // 2], "bad.png")
    return world.run()


@error("text file called .jpg", "1 image cannot be read", "red apple/bad.jpg", "cannot identify", "data.on_error")
def _(world: World) -> list[str]:
    _spoil(world, b"not an image")
    return world.run()


def _bomb(world: World) -> None:
    """The header of a PNG of 60,000 x 60,000 pixels: 10 GB, were it decoded."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    _spoil(world, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")), "bomb.png")


@error("decompression bomb", "1 image cannot be read", "red apple/bomb.png", "decompression bomb", "data.on_error")
def _(world: World) -> list[str]:
    _bomb(world)
    return world.run()


@error("named pipe among the images", "1 image cannot be read", "red apple/pipe.jpg", "regular file")
def _(world: World) -> list[str]:
    os.mkfifo(world.root / "own" / "red apple" / "pipe.jpg")
    return world.run()


@error("dangling link", "1 image cannot be read", "red apple/link.jpg", "data.on_error")
def _(world: World) -> list[str]:
    (world.root / "own" / "red apple" / "link.jpg").symlink_to(world.place / "gone.jpg")
    return world.run()


@error("image without permission to read", "1 image cannot be read", "red apple/0.png", "Permission denied")
def _(world: World) -> list[str]:
    really = Image.open

    def refused(path: Any, *rest: Any, **more: Any) -> Any:
        if str(path).endswith("red apple/0.png"):  # chmod means nothing to root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *rest, **more)

    world.patch.setattr(Image, "open", refused)
    return world.run()


@counted("unreadable images, left out", 3)
def _(world: World) -> list[str]:
    _spoil(world, b"")
    _spoil(world, b"text", "text.png")
    _bomb(world)
    return world.run("data.on_error=skip")


@counted("links and pipes, left out", 2)
def _(world: World) -> list[str]:
    os.mkfifo(world.root / "own" / "red apple" / "pipe.jpg")
    (world.root / "own" / "red apple" / "link.jpg").symlink_to(world.place / "gone.jpg")
    return world.run("data.on_error=skip")


@works("images of other modes and shapes")
def _(world: World) -> list[str]:
    place = world.root / "own" / "red apple"
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    rgb.convert("CMYK").save(place / "cmyk.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(place / "16 bit.png")
    Image.fromarray(noise).save(place / "alpha.png")
    rgb.convert("P").save(place / "palette.png", transparency=0)
    rgb.convert("LA").save(place / "grey and alpha.png")
    rgb.convert("1").save(place / "black and white.png")
    rgb.save(place / "moving.gif", save_all=True, append_images=[rgb.rotate(90)])
    rgb.resize((1, 1)).save(place / "dot.png")
    rgb.resize((1, 200)).save(place / "line.jpg")
    rgb.save(place / "an upper case ending.JPG")
    rgb.save(place / "png inside.jpg", "PNG")
    (place / "folder.jpg").mkdir()
    return world.run()


# -- folders ---------------------------------------------------------------------------------------------------------
@error("class folder without images", "class folder 'lynx'", "holds no images", "remove it")
def _(world: World) -> list[str]:
    (world.root / "own" / "lynx").mkdir()
    return world.run()


@error("one class", "at least 2 classes", "1 ('red apple')")
def _(world: World) -> list[str]:
    shutil.rmtree(world.root / "own" / "green leaf")
    shutil.rmtree(world.root / "own" / "blue car")
    return world.run()


@error("train and test with other classes", "got 0 for class", "'lynx'", "allow_empty")
def _(world: World) -> list[str]:
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "lynx"))):
        for name in names:
            write_image(world.root / "split" / split / name / "0.png")
    return world.run(f"data.root={world.root / 'split'}")


@error("folder of nothing", "must hold class folders with images", "there are none")
def _(world: World) -> list[str]:
    (world.root / "empty").mkdir()
    return world.run(f"data.root={world.root / 'empty'}")


@error("no such folder", "`root` must be a folder", "nowhere", "no such folder")
def _(world: World) -> list[str]:
    return world.run("data.root=nowhere")


@error("a file for a folder", "`root` must be a folder", "0.png")
def _(world: World) -> list[str]:
    return world.run(f"data.root={world.root / 'own' / 'red apple' / '0.png'}")


@error("images without class folders", "must hold class folders with images", "It holds: 0.png")
def _(world: World) -> list[str]:
    return world.run(f"data.root={world.root / 'own' / 'red apple'}")


@error("two names that read alike", "class names", "must differ", "caf")
def _(world: World) -> list[str]:
    for form in ("NFC", "NFD"):  # one letter with its accent, or two
        for number in range(2):
            write_image(world.root / "own" / unicodedata.normalize(form, "café") / f"{number}.png")
    return world.run()


@error("two folders with one name", "class names", "must differ", "'red apple' more than once")
def _(world: World) -> list[str]:
    for number in range(2):
        write_image(world.root / "own" / "red_apple" / f"{number}.png")
    return world.run()


@works("names in any script")
def _(world: World) -> list[str]:
    for name in ("猫", "crème brûlée", "кот", "🦊", 'a\'b "c"', "50% {off}"):
        for number in range(2):
            write_image(world.root / "own" / name / f"{number} ☃.png")
    return world.run(tuning="zero_shot", head="text")


# -- list files ------------------------------------------------------------------------------------------------------
def _list(world: World, change: Callable[[str], str], split: str = "train") -> list[str]:
    """ImageNet-LT in miniature with one of its lists changed."""
    root, section = world.benchmark("imagenet_lt")
    file = root / f"ImageNet_LT_{split}.txt"
    file.write_bytes(change(file.read_text()).encode())
    return world.run(data=section)


FIRST = "train/n01440764/n01440764_0.JPEG"


@error("missing image of a list", "1 of 31 images is not in", FIRST, "data.on_error to skip")
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / FIRST).unlink()
    return world.run(data=section)


@counted("missing image of a list, left out", 1)
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / FIRST).unlink()
    return world.run("data.on_error=skip", data=section)


@error("broken image of a list", FIRST, "cannot be read")
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / FIRST).write_bytes(b"")
    return world.run(data=section)


@error("label outside the range", "labels must run from 0 to 999999999", "without gaps", FIRST)
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(f"{FIRST} 0", f"{FIRST} 999999999"))


@error("label that is no number", "ImageNet_LT_train.txt, line 1", "with a label >= 0", f"got '{FIRST} tench'")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(f"{FIRST} 0", f"{FIRST} tench"))


@error("negative label", "ImageNet_LT_train.txt, line 1", "with a label >= 0", f"got '{FIRST} -1'")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(f"{FIRST} 0", f"{FIRST} -1"))


@error("line without a label", "ImageNet_LT_train.txt, line 1", "one `relative/path label` per line")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(f"{FIRST} 0", FIRST))


@error("empty list", "ImageNet_LT_train.txt must hold", "and is empty")
def _(world: World) -> list[str]:
    return _list(world, lambda _: "\n\n")


@error("line that stands twice", "ImageNet_LT_train.txt, line 16", FIRST, "line 1", "remove one")
def _(world: World) -> list[str]:
    return _list(world, lambda text: f"{text}{FIRST} 0\n")


@error("one image with two labels", "ImageNet_LT_train.txt, line 16", FIRST, "line 1")
def _(world: World) -> list[str]:
    return _list(world, lambda text: f"{text}{FIRST} 1\n")


@error("absolute path in a list", "line 1", "must stay below `root`", "/etc/passwd")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(FIRST, "/etc/passwd"))


@error("path that leads out", "line 1", "must stay below `root`", "train/../../x.jpg")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace(FIRST, "train/../../x.jpg"))


@error("lists of two releases", "ImageNet_LT_test.txt", "does not go with the other lines", "from one release")
def _(world: World) -> list[str]:
    return _list(world, lambda text: text.replace("val/n01440764", "val/n01443537"), "test")


@error("missing list", "ImageNet_LT_val.txt is missing", "`relative/path label`", "OLTR", "`lists`")
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / "ImageNet_LT_val.txt").unlink()
    return world.run(data=section)


@error("a folder for a list", "ImageNet_LT_val.txt is missing")
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / "ImageNet_LT_val.txt").unlink()
    (root / "ImageNet_LT_val.txt").mkdir()
    return world.run(data=section)


@error("binary list", "ImageNet_LT_train.txt must be a text file in UTF-8")
def _(world: World) -> list[str]:
    root, section = world.benchmark("imagenet_lt")
    (root / "ImageNet_LT_train.txt").write_bytes(b"\xff\xfe\x00\x80")
    return world.run(data=section)


@works("list with tabs, blank lines, a byte order mark and Windows line ends")
def _(world: World) -> list[str]:
    return _list(world, lambda text: "\ufeff" + text.replace(" ", "\t").replace("\n", "  \r\n\r\n"))


# -- tables ----------------------------------------------------------------------------------------------------------
def _table(world: World, change: Callable[[list[list[str]]], object], name: str = "own.csv", **keys: Any) -> list[str]:
    """A table with path, label and split, changed."""
    rows = [["path", "label", "split"]]
    rows += [[f"own/{label}/{number}.png", label, split]
             for label in ("red apple", "green leaf")
             for number, split in enumerate(("train", "train", "test"))]  # fmt: skip
    change(rows)
    with (world.root / name).open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return world.run(data={"name": "table", "file": str(world.root / name), **keys})


def _cell(row: int, column: int, value: str) -> Callable[[list[list[str]]], None]:
    def change(rows: list[list[str]]) -> None:
        rows[row][column] = value

    return change


@error("table without its column", "must have a column 'path'", "got file, label, split", "`path_column`")
def _(world: World) -> list[str]:
    return _table(world, _cell(0, 0, "file"))


@error("unknown split in a table", "row 2", "must be train, val or test", "'holdout'", "`split_column` to null")
def _(world: World) -> list[str]:
    return _table(world, _cell(2, 2, "holdout"))


@error("row without a label", "row 3", "'label' is empty", "fill it or drop it")
def _(world: World) -> list[str]:
    return _table(world, _cell(3, 1, ""))


@error("row without a path", "row 1", "'path' is empty")
def _(world: World) -> list[str]:
    return _table(world, _cell(1, 0, " "))


@error("missing image of a table", "1 of 6 images is not in", "own/gone.png", "data.on_error")
def _(world: World) -> list[str]:
    return _table(world, _cell(1, 0, "own/gone.png"))


@error("image that stands twice in a table", "own.csv, row 2", "own/red apple/0.png", "row 1")
def _(world: World) -> list[str]:
    return _table(world, _cell(2, 0, "own/red apple/0.png"))


@error("ragged table", "own.csv cannot be read as a table", "line 3")
def _(world: World) -> list[str]:
    return _table(world, lambda rows: rows[2].append("more"))


@error("table of nothing", "own.csv cannot be read as a table", "No columns")
def _(world: World) -> list[str]:
    return _table(world, lambda rows: rows.clear())


@error("table without rows", "must have one row per image, and has none")
def _(world: World) -> list[str]:
    return _table(world, lambda rows: rows.__delitem__(slice(1, None)))


@error("table of another kind", "must end in .csv, .tsv, .txt or .parquet, got 'own.xlsx'")
def _(world: World) -> list[str]:
    return _table(world, lambda _: None, "own.xlsx")


@error("broken Parquet", "own.parquet")
def _(world: World) -> list[str]:
    return _table(world, lambda _: None, "own.parquet")


@error("a folder for a table", "`file` must be a table", "no such file")
def _(world: World) -> list[str]:
    return world.run(data={"name": "table", "file": str(world.root)})


# -- other formats ---------------------------------------------------------------------------------------------------
SPLIT = "split_zhou_Caltech101.json"


def _zhou(world: World, change: Callable[[dict[str, Any]], object]) -> list[str]:
    root, section = world.benchmark("caltech101")
    file = root / "caltech-101" / SPLIT
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return world.run(data=section)


@error("split file cut short", f"{SPLIT} must hold train, val and test in JSON")
def _(world: World) -> list[str]:
    root, section = world.benchmark("caltech101")
    file = root / "caltech-101" / SPLIT
    file.write_text(file.read_text()[:100])
    return world.run(data=section)


@error("split file without val", f"{SPLIT} must hold train, val and test in JSON", "'val'")
def _(world: World) -> list[str]:
    return _zhou(world, lambda content: content.pop("val"))


@error("split file with a label in words", SPLIT, "entry 0 of 'train' is ['face/train 0.jpg', '0', 'face']")
def _(world: World) -> list[str]:
    return _zhou(world, lambda content: content["train"][0].__setitem__(1, "0"))


@error("split file with a missing image", "1 of 40 images is not in", "gone.jpg", "data.on_error")
def _(world: World) -> list[str]:
    return _zhou(world, lambda content: content["train"][0].__setitem__(0, "gone.jpg"))


@error("split file that leads out", "entry 0 of 'train'", "must stay below `root`", "../gone.jpg")
def _(world: World) -> list[str]:
    return _zhou(world, lambda content: content["train"][0].__setitem__(0, "../gone.jpg"))


@error("taxa that are no JSON", "categories.json must be a list of taxa in JSON")
def _(world: World) -> list[str]:
    root, section = world.benchmark("inat2018")
    (root.parent / "inat_lists" / "categories.json").write_text("[{")
    return world.run(data=section)


@error("CIFAR cut short", "data_batch_1", "cannot be read as a batch of CIFAR", "unpack the archive again")
def _(world: World) -> list[str]:
    root, section = world.benchmark("cifar10_lt")
    file = root / "cifar-10-batches-py" / "data_batch_1"
    file.write_bytes(file.read_bytes()[:1000])
    return world.run(data=section)


@error("CIFAR that would run a program", "data_batch_1", "which data does not need")
def _(world: World) -> list[str]:
    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(world.place / "evil"),)

    root, section = world.benchmark("cifar10_lt")
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    return world.run(data=section)


def _shard(world: World, change: Callable[[Path], object]) -> list[str]:
    root, section = world.benchmark("webdataset")
    change(root / "own-train-000000.tar")
    return world.run(data=section)


@error("shard cut short", "own-train-000000.tar cannot be read", "copy it again")
def _(world: World) -> list[str]:
    return _shard(world, lambda shard: shard.write_bytes(shard.read_bytes()[:700]))


@error("compressed shard", "own-train-000000.tar cannot be read", "unpack a compressed one")
def _(world: World) -> list[str]:
    def compress(shard: Path) -> None:
        with tarfile.open(shard, "w:gz") as archive:
            archive.addfile(tarfile.TarInfo("0.jpg"), io.BytesIO())

    return _shard(world, compress)


@error("shard that leads out", "own-train-000000.tar holds '../0.jpg'", "leads out of the shard")
def _(world: World) -> list[str]:
    return _shard(world, lambda shard: write_tar(shard, {"../0.jpg": encoded(".jpg", 0), "../0.cls": b"0"}))


@error("image without a label in a shard", "every image must have a label", "'0'", "`label_file`")
def _(world: World) -> list[str]:
    return _shard(world, lambda shard: write_tar(shard, {"0.jpg": encoded(".jpg", 0)}))


# -- recipes ---------------------------------------------------------------------------------------------------------
def _recipe(name: str, content: str, *words: str) -> None:
    """Registers a recipe file with this content."""
    ERRORS[name] = (lambda world: ["run", str(world.text("broken.yaml", content))]), words


_recipe("YAML that is none", "data: {name: folder", "broken.yaml: not valid YAML", "line 1")
_recipe("YAML with a tab", "data:\n\tname: folder", "broken.yaml: not valid YAML", "line 2")
_recipe("a key written twice", "seed: 1\nseed: 2", "broken.yaml: not valid YAML", "'seed' is written twice", "line 2")
_recipe("a key that is a list", "[a, b]: 1", "broken.yaml: not valid YAML", "a key must be a word or a number")
_recipe("a list for a recipe", "- name: x", "must be a mapping of keys, got a list")
_recipe("an empty recipe", "", "data: missing", "encoder: missing", "tuning: missing")
_recipe("an object of Python", "name: !!python/object/apply:os.getcwd []", "broken.yaml: not valid YAML")
_recipe("an include of itself", "include: broken.yaml", "includes itself: broken.yaml -> broken.yaml")
_recipe("an include that is not there", "include: gone.yaml", "no file 'gone.yaml'")
_recipe("an include that is a number", "include: 3", "include: must be a list of paths, got 3")
_recipe("a name that leads out", "name: ../../x\ndata: icons_lt", "name: must be a word", "'../../x'")
_recipe(
    "lists that grow a millionfold",
    "a: &a [x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghij"))
    + "data: *j",
    "must hold at most 100,000 values",
    "aliases",
)  # fmt: skip


@error("two recipes that include each other", "includes itself: a.yaml -> b.yaml -> a.yaml")
def _(world: World) -> list[str]:
    world.text("b.yaml", "include: a.yaml")
    return ["run", str(world.text("a.yaml", "include: b.yaml"))]


@error("a recipe that is binary", "broken.yaml: not valid YAML")
def _(world: World) -> list[str]:
    (world.place / "broken.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    return ["run", str(world.place / "broken.yaml")]


@error("a recipe that is a folder", "must be a YAML file or the name of a packaged recipe")
def _(world: World) -> list[str]:
    return ["run", str(world.root)]


@works("a rate as YAML 1.1 does not read it")
def _(world: World) -> list[str]:
    command = world.run()
    file = Path(command[1])
    file.write_text(file.read_text().replace("training:", "training:\n  optimizer: {name: sgd, lr: 1e-3}"))
    return command


def _setting(override: str, *words: str) -> None:
    """Registers an override of the recipe."""
    ERRORS[override] = (lambda world: world.run(override)), words


_setting("trainning.epochs=2", "trainning: unknown key", "Did you mean 'training'?")
_setting("training.epoch=2", "training.epoch: unknown key", "Did you mean 'epochs'?")
_setting("training.epochs=-1", "training.epochs: must be a whole number >= 1, got -1")
_setting("training.epochs=2.5", "training.epochs: must be a whole number >= 1, got 2.5")
_setting("training.epochs=true", "training.epochs: must be a whole number >= 1, got True")
_setting("training.batch_size=0", "training.batch_size: must be a whole number >= 1, got 0")
_setting("training.optimizer.lr=.nan", "training.optimizer.lr: must be a number", "got nan")
_setting("training.optimizer.lr=.inf", "training.optimizer.lr: must be a number", "got inf")
_setting("training.optimizer.lr=-1", "training.optimizer.lr: must be a number", "got -1")
_setting('training.optimizer.lr="1e-3"', "training.optimizer.lr: must be a number", "got '1e-3'", "quotes")
_setting("training.optimizer={name: sgd, lr: [1]}", "training.optimizer.lr: must be a number", "got [1]")
_setting("training=3", "training: must be a mapping of keys, got 3")
_setting("head={scale: 3}", "head.scale: unknown key")
_setting("head=[linear]", "head: must be the name of a head, or a mapping with `name`")
_setting("balancing.loss=focall", "unknown loss 'focall'", "Did you mean 'focal'?")
_setting("balancing.loss={name: logit_adjustment, tau: -1}", "balancing.loss.tau: must be a number >= 0, got -1")
_setting("data.tau=1.5", "data.tau: must be a number > 0 and <= 1, got 1.5")
_setting("data.tau=0.5", "`tau` 0.5 thins a few-shot dataset and needs `shots`")
_setting("data.shots=0", "data.shots: must be a whole number >= 1 or null, got 0")
_setting("data.test_fraction=1.0", "data.test_fraction: must be a number >= 0 and < 1, got 1.0")
_setting("data.test_fraction=0", "must have images for 'test', got images for train", "test_fraction")
_setting("data.templates=[a photo]", "sentences with one {} for the class name, got 'a photo'")
_setting("data.tail_factor=0.5", "data.tail_factor: must be a number >= 1, got 0.5")
_setting("seed=-1", "seed: must be a whole number >= 0, got -1")
_setting("evaluation.groups={many: 5, few: 50}", "many", "few", "5", "50")
_setting("evaluation.groups={lots: 5}", "evaluation.groups: must be a mapping", "many", "few")
_setting("epochs", "an override must look like key.path=value, got 'epochs'")
_setting("seed=[1", "seed: not valid YAML: '[1'")


@error("a rate that no training survives", "lr")
def _(world: World) -> list[str]:
    return world.run("training.epochs=20", "training.optimizer.lr=1e38")


@works("more shots than a class has")
def _(world: World) -> list[str]:
    return world.run("data.shots=100")


@works("a batch larger than the set")
def _(world: World) -> list[str]:
    return world.run("training.batch_size=100000")


@error("halves of three classes", "at least 2 classes each")
def _(world: World) -> list[str]:
    return world.run("data.classes=base", tuning="zero_shot", head="text")


@error("a name longer than the text tower reads", "context", "16")
def _(world: World) -> list[str]:
    for number in range(2):
        write_image(world.root / "own" / " ".join("abcdefghijklmnopqrstuvwxyz") / f"{number}.png")
    return world.run(tuning={"name": "prompt", "method": "coop", "n_ctx": 4, "views": 0}, head="text")


# -- weights ---------------------------------------------------------------------------------------------------------
def _copied_model(world: World) -> Path:
    return Path(shutil.copytree(world.encoder.removeprefix("local-dir:"), world.place / "model"))


def _model(world: World) -> list[str]:
    return world.run(encoder={"name": f"local-dir:{world.place / 'model'}"})


@error("weights cut short", "open_clip_model.safetensors", "could not be read")
def _(world: World) -> list[str]:
    file = _copied_model(world) / "open_clip_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    return _model(world)


@error("empty weights", "open_clip_model.safetensors", "could not be read")
def _(world: World) -> list[str]:
    (_copied_model(world) / "open_clip_model.safetensors").write_bytes(b"")
    return _model(world)


@error("weights of another architecture", "holds weights of another architecture", "(64,)", "(32,)")
def _(world: World) -> list[str]:
    file = _copied_model(world) / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 64
    file.write_text(json.dumps(config))
    return _model(world)


@error("model whose description is no JSON", "open_clip_config.json")
def _(world: World) -> list[str]:
    (_copied_model(world) / "open_clip_config.json").write_text("{")
    return _model(world)


@error("model without weights", "weights", "has none")
def _(world: World) -> list[str]:
    (_copied_model(world) / "open_clip_model.safetensors").unlink()
    return _model(world)


@error("model that is no folder", "must be a folder with open_clip_config.json")
def _(world: World) -> list[str]:
    return world.run("encoder.name=local-dir:nowhere")


@error("a folder for weights", "weights", "data")
def _(world: World) -> list[str]:
    return world.run(encoder={"name": "ViT-B-32", "pretrained": str(world.root)})


@error("backbone's weights cut short", "timm:resnet10t", "broken.safetensors")
def _(world: World) -> list[str]:
    (world.place / "broken.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    return world.run(encoder={"name": "timm:resnet10t", "pretrained": str(world.place / "broken.safetensors")})


@error("a folder for a backbone's weights", "`pretrained` must be true, 'random' or a local checkpoint")
def _(world: World) -> list[str]:
    return world.run(encoder={"name": "timm:resnet10t", "pretrained": str(world.root)})


# -- runs ------------------------------------------------------------------------------------------------------------
@error("a file for the runs folder", "cannot be written", "choose another folder")
def _(world: World) -> list[str]:
    (world.place / "full").write_text("")
    return world.run("--runs", "full")


@error("runs folder without permission to write", "cannot be written: Permission denied", "choose another folder")
def _(world: World) -> list[str]:
    really = Path.mkdir

    def refused(self: Path, *rest: Any, **more: Any) -> None:
        if "runs" in self.parts:  # chmod means nothing to root
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        really(self, *rest, **more)

    world.patch.setattr(Path, "mkdir", refused)
    return world.run()


@error("full disk", "no space left on the disk", "free some space")
def _(world: World) -> list[str]:
    really = os.fsync

    def full(handle: int) -> None:
        if "runs" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        really(handle)

    if not sys.platform.startswith("linux"):
        pytest.skip("asks Linux which file is written")
    world.patch.setattr(os, "fsync", full)
    return world.run()


@error("damaged result", "result.json is not a result file", "--force")
def _(world: World) -> list[str]:
    file = world.finished() / "result.json"
    file.write_text(file.read_text()[:200])
    return world.run()


@error("result of another kind", "result.json must be a result of schema 1", "--force")
def _(world: World) -> list[str]:
    (world.finished() / "result.json").write_text("[1, 2]")
    return ["table", "runs"]


@error("result without its scores", "result.json", "'scores'", "--force")
def _(world: World) -> list[str]:
    file = world.finished() / "result.json"
    record = json.loads(file.read_text())
    del record["scores"]
    file.write_text(json.dumps(record))
    return ["table", "runs"]


@error("result that is a folder", "result.json")
def _(world: World) -> list[str]:
    file = world.finished() / "result.json"
    file.unlink()
    file.mkdir()
    return world.run()


@error("trained weights cut short", "head.safetensors", "damaged")
def _(world: World) -> list[str]:
    run = world.finished()
    file = run / "head.safetensors"
    file.write_bytes(file.read_bytes()[:60])
    return ["predict", str(run), str(world.root / "own")]


@error("trained weights of another head", "head.safetensors holds weights of another head")
def _(world: World) -> list[str]:
    from safetensors.numpy import save_file

    run = world.finished()
    save_file({"weight": np.zeros((2, 2), np.float32)}, run / "head.safetensors")
    return ["predict", str(run), str(world.root / "own")]


@error("trained weights that are gone", "no weights at", "head.safetensors")
def _(world: World) -> list[str]:
    run = world.finished()
    (run / "head.safetensors").unlink()
    return ["predict", str(run), str(world.root / "own")]


@error("recipe of a run that is gone", "recipe.resolved.yaml")
def _(world: World) -> list[str]:
    run = world.finished()
    (run / "recipe.resolved.yaml").unlink()
    return ["predict", str(run), str(world.root / "own")]


@error("recipe of a run that lost a part", "recipe.resolved.yaml", "'encoder'")
def _(world: World) -> list[str]:
    run = world.finished()
    (run / "recipe.resolved.yaml").write_text("name: x\n")
    return ["predict", str(run), str(world.root / "own")]


@error("prediction of no run", "must be the folder of a finished run")
def _(world: World) -> list[str]:
    return ["predict", str(world.root), str(world.root / "own")]


@error("prediction of a text file", "1 image cannot be read", "text.jpg")
def _(world: World) -> list[str]:
    run = world.finished()
    (world.place / "text.jpg").write_text("text")
    return ["predict", str(run), str(world.place / "text.jpg")]


@error("prediction of nothing", "no such image or folder: nowhere")
def _(world: World) -> list[str]:
    return ["predict", str(world.finished()), "nowhere"]


@error("predictions into a folder", "cannot be written", "out")
def _(world: World) -> list[str]:
    (world.place / "out").mkdir()
    return ["predict", str(world.finished()), str(world.root / "own"), "--out", "out"]


@error("table into a folder that is a file", "cannot be written")
def _(world: World) -> list[str]:
    world.finished()
    (world.place / "file").write_text("")
    return ["table", "runs", "--out", "file/table.csv"]


@error("table of nothing finished", "no result.json below")
def _(world: World) -> list[str]:
    return ["table", str(world.root)]


@works("cached features cut short")
def _(world: World) -> list[str]:
    world.finished()
    for file in (world.place / "cache" / "features").rglob("features.bin"):
        file.write_bytes(file.read_bytes()[:10])
    return world.run("--force")


@works("a checkpoint cut short")
def _(world: World) -> list[str]:
    run = world.finished()
    (run / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut")
    (run / "result.json").unlink()
    return world.run()


# -- the tests -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(ERRORS))
def test_is_one_clear_error(name: str, world: World, capsys: Capture) -> None:
    case, words = ERRORS[name]
    arguments = case(world)
    capsys.readouterr()
    data, left = everything(world.root), results(world.place)
    with in_time():
        code = main(arguments)
    said = capsys.readouterr()
    assert code == 2, said.err
    assert said.out == ""
    assert sum(line.startswith("error: ") for line in said.err.splitlines()) == 1
    assert "Traceback" not in said.err
    assert len(said.err) < 5000, "an error is for reading"
    assert [word for word in words if word not in said.err] == [], said.err
    assert results(world.place) == left, "half-written"
    assert everything(world.root) == data
    assert not (world.place / "evil").exists()


@pytest.mark.parametrize("name", list(COUNTED))
def test_is_left_out_and_counted(name: str, world: World, capsys: Capture) -> None:
    case, skipped = COUNTED[name]
    arguments = case(world)
    data = everything(world.root)
    with in_time():
        assert main(arguments) == 0, capsys.readouterr().err
    (record,) = [json.loads(path.read_text()) for path in (world.place / "runs").rglob("result.json")]
    assert record["images"]["skipped"] == len(record["skipped"]) == skipped
    assert everything(world.root) == data


@pytest.mark.parametrize("name", list(WORKS))
def test_is_no_mistake(name: str, world: World, capsys: Capture) -> None:
    arguments = WORKS[name](world)
    capsys.readouterr()
    data = everything(world.root)
    with in_time():
        assert main(arguments) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3, "a table of one row"
    assert everything(world.root) == data


def test_there_are_enough_kinds() -> None:
    assert len(ERRORS) + len(COUNTED) + len(WORKS) >= 100


def test_a_command_that_hangs_is_ended(world: World) -> None:
    """The timer ends a read that never comes back, so that a hang fails here and does not stop the suite."""
    os.mkfifo(world.place / "pipe")
    globals_ = in_time.__wrapped__.__globals__  # type: ignore[attr-defined]
    world.patch.setitem(globals_, "SECONDS", 1)
    with pytest.raises(TimeoutError, match="still at it after 1 s"), in_time():
        (world.place / "pipe").open("rb")


def test_sixteen_bits_keep_their_shades(world: World, tmp_path: Path) -> None:
    """Pillow cuts 16 bits off at 255, which makes every such image white."""
    from imbalance_vlm.data.dataset import FileImages

    levels = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    found = np.asarray(FileImages(tmp_path, ("deep.png",))[0])
    np.testing.assert_allclose(found[..., 0], levels / 257, atol=1)
