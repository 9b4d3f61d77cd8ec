"""The feature cache, also when a run is interrupted or the disk is full."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from imbalance_vlm import InputError
from imbalance_vlm.cli.main import main
from imbalance_vlm.data.dataset import FileImages, Split
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders import cache
from imbalance_vlm.encoders.cache import FeatureCache, ImageCopies

ROWS, WIDTH = 10, 3
VALUES = np.arange(ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
KEY = {"weights": "w", "split": "train"}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "CHUNK", 4)


class Encoder:
    """Yields rows of VALUES, records which, and raises at a given row."""

    def __init__(self, fail_at: int | None = None, error: BaseException | None = None) -> None:
        self.encoded: list[tuple[int, int]] = []
        self.fail_at, self.error = fail_at, error or KeyboardInterrupt()

    def __call__(self, start: int) -> Iterator[NDArray[Any]]:
        for begin in range(start, ROWS, 4):
            if begin == self.fail_at:
                raise self.error
            self.encoded.append((begin, min(begin + 4, ROWS)))
            yield VALUES[begin : begin + 4]


def get(encode: Callable[[int], Iterator[Any]], key: dict[str, Any] = KEY, **limits: int) -> NDArray[Any]:
    return FeatureCache(**limits).get(key, VALUES.shape, "float32", encode)  # type: ignore[arg-type]


def files(name: str) -> list[Path]:
    return sorted(FeatureCache().root.glob(f"*/{name}"))


def test_encoded_rows_are_read_the_second_time() -> None:
    first, second = Encoder(), Encoder()
    assert np.array_equal(get(first), VALUES)
    assert np.array_equal(get(second), VALUES)
    assert first.encoded == [(0, 4), (4, 8), (8, 10)]
    assert second.encoded == []


def test_arrays_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        get(Encoder())[0] = 1


@pytest.mark.parametrize("change", [{"weights": "v"}, {"split": "test"}, {"more": 1}])
def test_another_key_is_another_entry(change: dict[str, Any]) -> None:
    get(Encoder())
    second = Encoder()
    get(second, KEY | change)
    assert second.encoded


@pytest.mark.parametrize("torn_bytes", [0, 5])
def test_an_interrupted_entry_is_resumed_with_the_same_bytes(torn_bytes: int) -> None:
    """The interruption is in the second chunk; half a row may follow the first."""
    with pytest.raises(KeyboardInterrupt):
        get(Encoder(fail_at=4))
    assert not files("features.bin")
    (partial,) = files("features.partial")
    with partial.open("ab") as stream:
        stream.write(b"\xff" * torn_bytes)
    resumed = Encoder()
    get(resumed)
    assert resumed.encoded == [(4, 8), (8, 10)]
    (finished,) = files("features.bin")
    assert finished.read_bytes() == VALUES.tobytes()
    assert not files("features.partial")


def test_an_interruption_before_the_last_step_only_moves_the_file() -> None:
    with pytest.raises(KeyboardInterrupt):
        get(Encoder(fail_at=8))
    (partial,) = files("features.partial")
    partial.write_bytes(VALUES.tobytes() + b"\xff" * 7)  # longer than it can be
    get(Encoder())
    assert files("features.bin")[0].read_bytes() == VALUES.tobytes()


@pytest.fixture
def other() -> dict[str, Any]:
    """An entry that exists already."""
    key = {"weights": "other"}
    get(Encoder(), key)
    return key


def assert_untouched(other: dict[str, Any]) -> None:
    encode = Encoder()
    assert np.array_equal(get(encode, other), VALUES)
    assert encode.encoded == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_one_clear_error(
    other: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real_open = Path.open

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stream, name)

        def write(self, block: bytes) -> int:
            raise OSError(number, os.strerror(number))

    def full_open(path: Path, *args: Any, **kwargs: Any) -> Any:
        stream = real_open(path, *args, **kwargs)
        return Full(stream) if path.name == "features.partial" else stream

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_open)
        with pytest.raises(InputError, match=r"no space left on the disk.*cache prune.*encoder.cache to false"):
            get(Encoder())
    assert len(files("features.bin")) == 1
    assert_untouched(other)
    assert np.array_equal(get(Encoder()), VALUES), "it works again once there is space"


def test_too_little_space_is_found_before_encoding(other: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    encode = Encoder()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(100, 90, 10))
        with pytest.raises(InputError, match=r"needs .* MB for 10 images, the disk has .* left"):
            get(encode)
    assert encode.encoded == []
    assert len(files("features.bin")) == 1
    assert_untouched(other)


def test_a_cache_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("IMBALANCE_VLM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written"):
        get(Encoder())


def test_two_threads_compute_once() -> None:
    encoded: list[tuple[int, int]] = []
    arrays: list[NDArray[Any]] = []
    both = threading.Barrier(2)

    def slow(start: int) -> Iterator[NDArray[Any]]:
        for begin in range(start, ROWS, 4):
            time.sleep(0.05)
            encoded.append((begin, min(begin + 4, ROWS)))
            yield VALUES[begin : begin + 4]

    def work() -> None:
        both.wait()
        arrays.append(get(slow))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert encoded == [(0, 4), (4, 8), (8, 10)]
    assert all(np.array_equal(values, VALUES) for values in arrays)
    assert len(arrays) == 2


# -- damage, and entries of others -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["features.bin", "features.sums"])
@pytest.mark.parametrize("damage", ["zeros", "nan", "one bit", "short", "gone"])
def test_a_damaged_entry_is_computed_again_with_a_note(
    name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    get(Encoder())
    (path,) = files(name)
    content = path.read_bytes()
    damaged = {
        "zeros": bytes(len(content)),
        "nan": content[:4] + b"\xff\xff\xff\x7f" + content[8:],
        "one bit": content[:-1] + bytes([content[-1] ^ 1]),
        "short": content[:-4],
        "gone": b"",
    }
    path.write_bytes(damaged[damage])
    if damage == "gone":
        path.unlink()
    again, third = Encoder(), Encoder()
    assert np.array_equal(get(again), VALUES)
    assert again.encoded == [(0, 4), (4, 8), (8, 10)]
    noted = "are damaged, and are computed again" in capsys.readouterr().err
    assert noted == ((name, damage) != ("features.bin", "gone"))
    assert np.array_equal(get(third), VALUES)
    assert third.encoded == []


def test_a_damaged_part_of_an_interrupted_entry_is_computed_again() -> None:
    with pytest.raises(KeyboardInterrupt):
        get(Encoder(fail_at=8))
    (partial,) = files("features.partial")
    content = partial.read_bytes()
    partial.write_bytes(content[:60] + bytes(len(content) - 60))
    resumed = Encoder()
    assert np.array_equal(get(resumed), VALUES)
    assert resumed.encoded == [(4, 8), (8, 10)]


def test_blocks_of_any_size_have_the_same_checksums() -> None:
    get(Encoder())
    (first,) = files("features.sums")

    def blocks(start: int) -> Iterator[NDArray[Any]]:
        yield from (VALUES[start:1], VALUES[1:7], VALUES[7:])

    get(blocks, KEY | {"blocks": "others"})
    assert {path.read_bytes() for path in files("features.sums")} == {first.read_bytes()}


def refuse_writing(patch: pytest.MonkeyPatch, number: int) -> None:
    """The cache as another user, or a disk mounted for reading only, shows it: chmod has no effect for root."""

    def refused(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    real_open = os.open

    def open_for_reading(path: Any, flags: int, *more: Any, **options: Any) -> int:
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return refused() if writes else real_open(path, flags, *more, **options)

    patch.setattr(os, "utime", refused)
    patch.setattr(os, "open", open_for_reading)
    patch.setattr(os, "mkdir", refused)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_complete_entry_is_read_without_writing_and_another_is_refused(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(Encoder())
    second = Encoder()
    with monkeypatch.context() as patch:
        refuse_writing(patch, number)
        assert np.array_equal(get(second), VALUES)
        with pytest.raises(InputError, match=r"cannot be written: .*\$IMBALANCE_VLM_CACHE\), or set encoder.cache to"):
            get(second, {"split": "another"})
        assert FeatureCache().prune(0) == [], "entries of others stay"
    assert second.encoded == []


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_no_file_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    get(Encoder())
    (finished,) = files("features.bin")
    finished.unlink()
    lock = finished.with_name("lock")
    lock.unlink(missing_ok=True)
    lock.mkdir() if kind == "folder" else lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"lock cannot be written: .*put the cache elsewhere"):
        get(Encoder())
    assert FeatureCache().prune(0) == []


@pytest.mark.parametrize("meta", ["[" * 100_000, "[]", "3", "null", "\xff"])
def test_damaged_meta_does_not_stop_anything(meta: str) -> None:
    fill("a")
    files("meta.json")[0].write_text(meta, encoding="latin-1")
    get(Encoder(), {"split": "b"})
    assert {str(entry.meta.get("split")) for entry in FeatureCache().entries()} == {"None", "b"}


def fill(*names: str) -> None:
    """Entries, the first one used least recently."""
    for age, name in enumerate(reversed(names)):
        get(Encoder(), {"split": name})
        (folder,) = [entry.folder for entry in FeatureCache().entries() if entry.meta["split"] == name]
        os.utime(folder, (time.time() - 1000 * age - 1000,) * 2)


def left() -> set[str]:
    return {entry.meta["split"] for entry in FeatureCache().entries()}


def test_the_least_recently_used_entry_is_removed_first() -> None:
    fill("old", "middle", "new")
    get(Encoder(), {"split": "more"}, limit=3 * VALUES.nbytes)
    assert left() == {"middle", "new", "more"}


def test_reading_counts_as_use() -> None:
    fill("old", "middle", "new")
    get(Encoder(), {"split": "old"})
    get(Encoder(), {"split": "more"}, limit=3 * VALUES.nbytes)
    assert left() == {"old", "new", "more"}


def test_an_entry_above_the_limit_is_refused_and_nothing_is_removed() -> None:
    fill("a", "b")
    with pytest.raises(InputError, match="exceeds the cache limit.*IMBALANCE_VLM_CACHE_GB"):
        get(Encoder(), limit=VALUES.nbytes - 1)
    assert {"a", "b"} <= left()


def test_prune_to_a_size_by_age_and_entirely() -> None:
    fill("a", "b", "c")
    store = FeatureCache()
    assert [entry.meta["split"] for entry in store.prune(10**9, older_than=2500)] == ["a"]
    assert [entry.meta["split"] for entry in store.prune(VALUES.nbytes)] == ["b"]
    store.prune(0)
    assert left() == set()


def test_prune_keeps_partial_entries_only_on_request() -> None:
    with pytest.raises(KeyboardInterrupt):
        get(Encoder(fail_at=4), {"split": "unfinished"})
    fill("done")
    FeatureCache().prune(0, finished_only=True)
    assert left() == {"unfinished"}
    FeatureCache().prune(0)
    assert left() == set()


def test_an_entry_without_readable_meta_is_listed_and_pruned() -> None:
    fill("a")
    (meta,) = files("meta.json")
    meta.write_text("{")
    (entry,) = FeatureCache().entries()
    assert entry.meta == {}
    assert FeatureCache().prune(0)


def test_the_limit_in_the_environment_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMBALANCE_VLM_CACHE_GB", "0.5")
    assert FeatureCache().limit == 500_000_000
    for wrong in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("IMBALANCE_VLM_CACHE_GB", wrong)
        with pytest.raises(InputError, match="must be a number of gigabytes"):
            FeatureCache()


# -- smaller copies of images ----------------------------------------------------------------------------------------


def shrink(folder: Path, *sizes: int) -> list[Path]:
    """Three copies of each size, the first ones used least recently."""
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / f"{number}.png")
    split = Split(FileImages(folder, ("0.png", "1.png", "2.png")), np.zeros(3, dtype=np.int64))
    copies = []
    for size in sizes:
        images = resized_split(split, size).images
        for index in range(3):
            assert images[index].height == size
            copies.append(images.path(index))  # type: ignore[attr-defined]
    for age, path in enumerate(reversed(copies)):
        os.utime(path, (time.time() - 1000 * age - 1000,) * 2)
    return copies


def test_copies_are_listed_by_size(tmp_path: Path) -> None:
    assert list(ImageCopies().entries()) == []
    copies = shrink(tmp_path / "mine", 20, 10)
    small, large = ImageCopies().entries()
    assert (small.meta, large.meta) == ({"size": 10, "copies": 3}, {"size": 20, "copies": 3})
    assert large.bytes == sum(path.stat().st_size for path in copies[:3])
    assert small.folder == copies[5].parents[1]
    assert small.used == pytest.approx(copies[5].stat().st_mtime)


def test_copies_are_pruned_to_a_size_by_age_and_entirely(tmp_path: Path) -> None:
    copies = shrink(tmp_path / "mine", 20, 10)
    sizes = [path.stat().st_size for path in copies]
    assert ImageCopies().prune(10**9, older_than=5500) == (1, sizes[0])
    assert ImageCopies().prune(sum(sizes[3:])) == (2, sum(sizes[1:3]))
    assert [path.exists() for path in copies] == [False] * 3 + [True] * 3
    assert ImageCopies().prune(0) == (3, sum(sizes[3:]))
    assert list(ImageCopies().entries()) == []
    assert len(list((tmp_path / "mine").iterdir())) == 3, "the user's images stay"
    assert ImageCopies().prune(0) == (0, 0)


def test_partial_copies_are_removed_once_no_run_can_be_writing_them(tmp_path: Path) -> None:
    copies = shrink(tmp_path / "mine", 10)
    new, old = (copies[0].with_name(f".{copies[0].name}.{name}.npy") for name in ("new", "old"))
    for path, age in ((new, 10), (old, 7200)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    assert ImageCopies().prune(0)[0] == 4
    assert new.exists()
    assert not old.exists()


def test_a_pruned_copy_is_made_again(tmp_path: Path) -> None:
    shrink(tmp_path / "mine", 10)
    ImageCopies().prune(0)
    assert all(path.exists() for path in shrink(tmp_path / "mine", 10))


def test_the_command_line_lists_and_prunes_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill("a")
    copies = shrink(tmp_path / "mine", 10)
    assert main(["cache", "ls"]) == 0
    shown = capsys.readouterr().out
    assert "1 entries of" in shown
    assert f"3 images with a shorter side of 10, in {copies[0].parents[1]}" in shown
    keep = VALUES.nbytes + sum(path.stat().st_size for path in copies[1:])
    assert main(["cache", "prune", "--max-gb", str((keep + 0.5) / 1e9)]) == 0
    assert "removed 0 entries, 0.0 MB\nremoved 1 smaller copies of images" in capsys.readouterr().out
    assert main(["cache", "prune", "--older-than-days", "1"]) == 0
    assert "removed 0 smaller copies" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0
    assert "removed 1 entries, 0.0 MB\nremoved 2 smaller copies" in capsys.readouterr().out
    assert left() == set()
