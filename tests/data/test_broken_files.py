"""Broken images and folders: each is named in one clear error, or left out and counted, or no mistake at all."""

from __future__ import annotations

import errno
import os
import shutil
import struct
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from imbalance_vlm.data import contents
from tests.broken_inputs import Workspace, time_limit
from tests.data.miniatures import encoded, write_image


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError, match="not finished after 1 s"), time_limit(1):
        (tmp_path / "pipe").open("rb")


# -- images ----------------------------------------------------------------------------------------------------------
def add_image(workspace: Workspace, content: bytes, name: str = "bad.jpg") -> None:
    (workspace.images / "red apple" / name).write_bytes(content)


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def decompression_bomb() -> bytes:
    """The header of a PNG of 60,000 x 60,000 pixels, which would take 10 GB to decode."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.jpg", b"", ""),
        ("cut.jpg", first_half(encoded(".jpg", 1, 64)), "truncated"),
        ("cut.png", first_half(encoded(".png", 1, 64)), ""),
        ("text.jpg", b"not an image", "cannot identify"),
        ("bomb.png", decompression_bomb(), "decompression bomb"),
    ],
    ids=["zero bytes", "truncated JPEG", "truncated PNG", "text", "decompression bomb"],
)
def test_an_unreadable_image_is_named(name: str, content: bytes, reason: str, workspace: Workspace) -> None:
    add_image(workspace, content, name)
    workspace.assert_refused(
        workspace.run(), "1 image cannot be read", f"red apple/{name}", reason, "data.on_error to skip"
    )


def test_a_named_pipe_among_the_images_is_named(workspace: Workspace) -> None:
    os.mkfifo(workspace.images / "red apple" / "pipe.jpg")
    workspace.assert_refused(workspace.run(), "1 image cannot be read", "red apple/pipe.jpg", "regular file")


def test_a_dangling_link_is_named(workspace: Workspace) -> None:
    (workspace.images / "red apple" / "link.jpg").symlink_to(workspace.folder / "gone.jpg")
    workspace.assert_refused(workspace.run(), "1 image cannot be read", "red apple/link.jpg", "data.on_error")


def test_an_image_without_read_permission_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_one(path: Any, *arguments: Any) -> Any:
        if str(path).endswith("red apple/0.png"):  # chmod has no effect for root
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open(path, *arguments)

    monkeypatch.setattr(contents, "open", refuse_one, raising=False)
    workspace.assert_refused(workspace.run(), "1 image cannot be read", "red apple/0.png", "Permission denied")


def test_unreadable_images_can_be_skipped(workspace: Workspace) -> None:
    add_image(workspace, b"")
    add_image(workspace, b"text", "text.png")
    add_image(workspace, decompression_bomb(), "bomb.png")
    workspace.assert_skipped(workspace.run("data.on_error=skip"), 3)


def test_links_and_pipes_can_be_skipped(workspace: Workspace) -> None:
    os.mkfifo(workspace.images / "red apple" / "pipe.jpg")
    (workspace.images / "red apple" / "link.jpg").symlink_to(workspace.folder / "gone.jpg")
    workspace.assert_skipped(workspace.run("data.on_error=skip"), 2)


def test_images_of_other_modes_and_shapes_work(workspace: Workspace) -> None:
    folder = workspace.images / "red apple"
    noise = np.random.default_rng(0).integers(0, 256, (12, 12, 4), dtype=np.uint8)
    rgb = Image.fromarray(noise[..., :3])
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(noise[..., 0].astype(np.uint16) * 257).save(folder / "16 bit.png")
    Image.fromarray(noise).save(folder / "alpha.png")
    rgb.convert("P").save(folder / "palette.png", transparency=0)
    rgb.convert("LA").save(folder / "grey and alpha.png")
    rgb.convert("1").save(folder / "black and white.png")
    rgb.save(folder / "moving.gif", save_all=True, append_images=[rgb.rotate(90)])
    rgb.resize((1, 1)).save(folder / "dot.png")
    rgb.resize((1, 200)).save(folder / "line.jpg")
    rgb.save(folder / "upper case suffix.JPG")
    rgb.save(folder / "png inside.jpg", "PNG")
    (folder / "folder.jpg").mkdir()
    workspace.assert_works(workspace.run())


# -- folders ---------------------------------------------------------------------------------------------------------
def test_a_class_folder_without_images_is_refused(workspace: Workspace) -> None:
    (workspace.images / "lynx").mkdir()
    workspace.assert_refused(workspace.run(), "class folder 'lynx'", "holds no images", "remove it")


def test_a_single_class_is_refused(workspace: Workspace) -> None:
    shutil.rmtree(workspace.images / "green leaf")
    shutil.rmtree(workspace.images / "blue car")
    workspace.assert_refused(workspace.run(), "at least 2 classes", "1 ('red apple')")


def test_other_classes_in_train_than_in_test_are_refused(workspace: Workspace) -> None:
    for split, names in (("train", ("cat", "dog")), ("test", ("cat", "lynx"))):
        for name in names:
            write_image(workspace.data / "split" / split / name / "0.png")
    command = workspace.run(f"data.root={workspace.data / 'split'}")
    workspace.assert_refused(command, "got 0 for class", "'lynx'", "allow_empty")


def test_an_empty_folder_is_refused(workspace: Workspace) -> None:
    (workspace.data / "empty").mkdir()
    command = workspace.run(f"data.root={workspace.data / 'empty'}")
    workspace.assert_refused(command, "must hold class folders with images", "there are none")


def test_a_missing_folder_is_named(workspace: Workspace) -> None:
    workspace.assert_refused(workspace.run("data.root=nowhere"), "`root` must be a folder", "nowhere", "no such folder")


def test_a_file_in_place_of_the_folder_is_refused(workspace: Workspace) -> None:
    file = workspace.images / "red apple" / "0.png"
    workspace.assert_refused(workspace.run(f"data.root={file}"), "`root` must be a folder", "0.png")


def test_images_without_class_folders_are_refused(workspace: Workspace) -> None:
    command = workspace.run(f"data.root={workspace.images / 'red apple'}")
    workspace.assert_refused(command, "must hold class folders with images", "It holds: 0.png")


def test_class_names_that_differ_in_their_encoding_only_are_refused(workspace: Workspace) -> None:
    for form in ("NFC", "NFD"):  # the accented letter as one character, and as two
        for number in range(2):
            write_image(workspace.images / unicodedata.normalize(form, "café") / f"{number}.png")
    workspace.assert_refused(workspace.run(), "class names", "must differ", "caf")


def test_two_folders_with_the_same_class_name_are_refused(workspace: Workspace) -> None:
    for number in range(2):
        write_image(workspace.images / "red_apple" / f"{number}.png")
    workspace.assert_refused(workspace.run(), "class names", "must differ", "'red apple' more than once")


def test_class_names_in_any_script_work(workspace: Workspace) -> None:
    for name in ("猫", "crème brûlée", "кот", "🦊", 'a\'b "c"', "50% {off}"):
        for number in range(2):
            write_image(workspace.images / name / f"{number} ☃.png")
    workspace.assert_works(workspace.run(tuning="zero_shot", head="text"))
