"""Images to batches: workers, decoders and whole batches."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from imbalance_vlm import InputError
from imbalance_vlm.data import loader
from imbalance_vlm.data.dataset import ArrayImages, FileImages
from imbalance_vlm.data.loader import Decoder, PixelLoader, TransformedImages, cores_for_workers
from imbalance_vlm.data.preprocessing import OnTensors, Preprocessing, View
from imbalance_vlm.encoders.features import CroppedView
from tests.data.images import preprocessing, smooth

MODEL = preprocessing()
CROP = CroppedView(MODEL, 1, 0.3, True)
ONE_STEP = 1.01 / 255 / 0.2


class FirstPixel:
    """A view of a plug-in: an image's first pixel, and in the last place the process that read it."""

    size = (1, 1)

    def __init__(self, add: int = 0) -> None:
        self.add = add

    def key(self) -> str:
        return f"first pixel + {self.add}"

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.cat([torch.tensor(np.array(image)).flatten()[:3].long() + self.add, torch.tensor([os.getpid()])])


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    for number in range(6):
        Image.new("RGB", (4, 4), (number, number, number)).save(tmp_path / f"{number}.png")
    return FileImages(tmp_path, tuple(f"{number}.png" for number in range(6)))


# -- workers ---------------------------------------------------------------------------------------------------------


def seen(batches: Iterator[Tensor]) -> tuple[list[list[int]], set[int]]:
    """First pixels of the images of each batch, and the processes that loaded them."""
    loaded = list(batches)
    return [batch[:, 0].tolist() for batch in loaded], {int(process) for batch in loaded for process in batch[:, -1]}


def test_batches_come_in_order_and_from_the_view(files: FileImages) -> None:
    loading = PixelLoader(files, [FirstPixel(), FirstPixel(100)], workers=2)
    assert seen(loading.batches([[5, 0], [3], [1, 1]]))[0] == [[5, 0], [3], [1, 1]]
    assert seen(loading.batches([[2], [4, 0]], view=1))[0] == [[102], [104, 100]]


def test_workers_are_kept_from_pass_to_pass(files: FileImages) -> None:
    loading = PixelLoader(files, [FirstPixel()], workers=1)
    passes = [seen(loading.batches([[0], [1], [2]])) for _ in range(2)]
    assert passes[0] == passes[1]
    assert os.getpid() not in passes[0][1]


def test_an_abandoned_pass_does_not_affect_the_next(files: FileImages) -> None:
    loading = PixelLoader(files, [FirstPixel()], workers=2)
    abandoned = loading.batches([[0], [1], [2], [3], [4]])
    next(abandoned)
    abandoned.close()
    assert seen(loading.batches([[5], [4]]))[0] == [[5], [4]]


def test_two_passes_at_once_have_their_own_workers(files: FileImages) -> None:
    loading = PixelLoader(files, [FirstPixel()], workers=1)
    first, second = loading.batches([[0], [1]]), loading.batches([[2], [3]])
    assert [int(next(batches)[0, 0]) for batches in (first, second, first, second)] == [0, 2, 1, 3]


def test_one_batch_and_images_in_memory_need_no_worker(files: FileImages) -> None:
    assert seen(PixelLoader(files, [FirstPixel()]).batches([[1, 2]]))[1] == {os.getpid()}
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    assert seen(PixelLoader(ArrayImages(pixels), [FirstPixel()]).batches([[3], [0, 1]])) == (
        [[36], [0, 12]],
        {os.getpid()},
    )


def test_reading_ahead_leaves_the_global_generator_alone(files: FileImages) -> None:
    before = torch.get_rng_state()
    seen(PixelLoader(files, [FirstPixel()], workers=1).batches([[0], [1]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader.os, "cpu_count", lambda: 12)
    assert cores_for_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores_for_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores_for_workers() == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_from_a_worker_is_one_line(workers: int, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    loading = PixelLoader(FileImages(tmp_path, ("a.png", "bad.png")), [MODEL], workers=workers)
    with pytest.raises(InputError, match=r"^image 'bad\.png' cannot be read: cannot identify the image: [^\n]*$"):
        list(loading.batches([[0], [1]]))
    assert len(list(loading.batches([[0], [0]]))) == 2, "the next pass starts afresh"


# -- decoders --------------------------------------------------------------------------------------------------------


def test_a_view_of_a_plug_in_uses_pil(files: FileImages) -> None:
    assert seen(PixelLoader(files, [FirstPixel()], "torchvision").batches([[1, 2]]))[0] == [[1, 2]]


def test_both_decoders_give_nearly_the_same_batches(tmp_path: Path) -> None:
    for number in range(3):
        smooth(number, 40, 30).save(tmp_path / f"{number}.png")
    images = FileImages(tmp_path, ("0.png", "1.png", "2.png"))
    decoders: tuple[Decoder, ...] = ("pil", "torchvision")
    by_pil, by_torchvision = (next(PixelLoader(images, [MODEL], decoder).batches([[2, 0]])) for decoder in decoders)
    assert 0 < float((by_pil - by_torchvision).abs().max()) <= ONE_STEP


@pytest.mark.parametrize("view", [MODEL, CROP])
def test_views_of_images_in_memory_use_tensors_too(view: View) -> None:
    images = ArrayImages(np.stack([np.asarray(smooth(number, 40, 30)) for number in range(3)]))
    by_pil, by_torchvision = PixelLoader(images, [view]), PixelLoader(images, [view], "torchvision")
    (changed,) = by_torchvision.dataset.views
    assert isinstance(getattr(changed, "base", changed), (OnTensors, Preprocessing))
    first, second = (next(loading.batches([[2, 0]])) for loading in (by_pil, by_torchvision))
    assert 0 < float((first - second).abs().max()) <= ONE_STEP


@pytest.mark.parametrize("decoder", ["pil", "torchvision"])
def test_a_file_that_cannot_be_read_is_named(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"image 'bad\.png' cannot be read"):
        next(PixelLoader(FileImages(tmp_path, ("bad.png",)), [MODEL], decoder).batches([[0]]))


def test_an_unknown_decoder_is_refused(files: FileImages) -> None:
    with pytest.raises(InputError, match="`decoder` must be 'pil', 'torchvision' or 'gpu', got 'nvjpeg'"):
        PixelLoader(files, [FirstPixel()], "nvjpeg")  # type: ignore[arg-type]


# -- whole batches ---------------------------------------------------------------------------------------------------


def in_memory(count: int, height: int, width: int) -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def test_images_in_memory_of_the_models_size_are_one_batch_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    images = in_memory(5, 16, 16)
    monkeypatch.setattr(TransformedImages, "__getitem__", None)  # no single image is made
    (batch,) = PixelLoader(images, [MODEL]).batches([[4, 0, 2]])
    assert torch.equal(batch, torch.stack([MODEL(images[row]) for row in (4, 0, 2)]))


def test_images_in_memory_of_another_size_are_prepared_one_by_one() -> None:
    images = in_memory(5, 16, 18)
    (batch,) = PixelLoader(images, [MODEL]).batches([[4, 0, 2]])
    assert torch.equal(batch, torch.stack([MODEL(images[row]) for row in (4, 0, 2)]))


def test_images_in_memory_of_another_size_are_one_batch_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    images = ArrayImages(np.stack([np.asarray(smooth(number, 30, 20)) for number in range(4)]))
    by_pil = next(PixelLoader(images, [MODEL]).batches([[3, 1]]))
    monkeypatch.setattr(TransformedImages, "__getitem__", None)
    batch = next(PixelLoader(images, [MODEL], "torchvision").batches([[3, 1]]))
    assert float((batch - by_pil).abs().max()) <= ONE_STEP


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> FileImages:
    """A JPEG file, a PNG file, a PNG file named .jpg, a CMYK one, and one that is no image."""
    for number, name in enumerate(("a.jpg", "b.png")):
        smooth(number, 40, 30).save(tmp_path / name, quality=95)
    smooth(2, 30, 40).save(tmp_path / "c.png")
    (tmp_path / "c.png").rename(tmp_path / "c.jpg")
    smooth(3, 30, 40).convert("CMYK").save(tmp_path / "d.jpg", quality=95)
    (tmp_path / "e.jpg").write_bytes(b"\xff\xd8 no image")
    return FileImages(tmp_path, ("a.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg"))


def test_without_a_gpu_its_decoder_is_torchvision(photographs: FileImages) -> None:
    decoders: tuple[Decoder, ...] = ("torchvision", "gpu")
    expected, batch = (next(PixelLoader(photographs, [MODEL], decoder).batches([[0, 1, 2, 3]])) for decoder in decoders)
    assert torch.equal(expected, batch)


def as_on_a_gpu(images: FileImages, view: Any) -> PixelLoader:
    """A loader for a GPU on a machine without one: the CPU decodes its batches."""
    loading = PixelLoader(images, [view], workers=1)
    loading.dataset = TransformedImages(images, [view], "gpu")
    return loading


def test_workers_read_and_the_device_decodes(photographs: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []
    decode_on = loader.decode_on

    def recorded(device: torch.device, files: list[Tensor]) -> list[Tensor]:
        decoded.append([content.ndim for content in files])
        return decode_on(device, files)

    monkeypatch.setattr(loader, "decode_on", recorded)
    batches = list(as_on_a_gpu(photographs, MODEL).batches([[0, 1], [2, 3]]))
    assert decoded == [[1, 3], [3, 3]], "bytes of plain JPEG files, pixels of others"
    for batch, by_pil in zip(batches, PixelLoader(photographs, [MODEL]).batches([[0, 1], [2, 3]]), strict=True):
        assert float((batch - by_pil).abs().max()) <= 3 * ONE_STEP
    with pytest.raises(InputError, match=r"image .e\.jpg. cannot be read: cannot identify"):
        list(as_on_a_gpu(photographs, MODEL).batches([[0, 4]]))


def test_crops_are_not_decoded_on_the_gpu(photographs: FileImages) -> None:
    expected = next(PixelLoader(photographs, [CROP], "torchvision").batches([[0, 1]]))
    assert torch.equal(next(as_on_a_gpu(photographs, CROP).batches([[0, 1]])), expected)


@pytest.mark.gpu
def test_a_gpu_decodes_and_scales(photographs: FileImages) -> None:
    by_gpu = PixelLoader(photographs, [MODEL], "gpu", device=torch.device("cuda"))
    by_pil = PixelLoader(photographs, [MODEL])
    for batch, expected in zip(*(loading.batches([[0, 1], [2, 3]]) for loading in (by_gpu, by_pil)), strict=True):
        assert batch.is_cuda
        assert float((batch.cpu() - expected).abs().max()) <= 4 * ONE_STEP


# -- workers in trouble ------------------------------------------------------------------------------------------------


class Large(FirstPixel):
    """A view whose batches are too large for the files that `small_files` allows."""

    def __call__(self, image: Image.Image) -> Tensor:
        return super().__call__(image)[0].expand(100_000).contiguous()


class Stuck(FirstPixel):
    def __call__(self, image: Image.Image) -> Tensor:
        time.sleep(60)
        raise AssertionError


class Killed(FirstPixel):
    def __call__(self, image: Image.Image) -> Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB, nor a block of shared memory, which is a file too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_batches_that_do_not_fit_into_shared_memory_go_another_way(
    files: FileImages, small_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PATIENCE", 10)
    batches = list(PixelLoader(files, [Large()], workers=1).batches([[0, 1], [2, 3], [4, 5]]))
    assert [batch[:, -1].tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
    assert all(batch.shape == (2, 100_000) for batch in batches)


@pytest.mark.parametrize(("view", "reason"), [(Stuck(), "timed out"), (Killed(), "exited unexpectedly|killed by")])
def test_a_worker_that_delivers_nothing_ends_the_pass_with_the_reason(
    view: View, reason: str, files: FileImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "PATIENCE", 1)
    pixels = PixelLoader(files, [FirstPixel(), view], workers=1)
    with pytest.raises(InputError, match=f"has died, or delivers nothing: DataLoader .*({reason}).*--shm-size"):
        list(pixels.batches([[0], [1]], view=1))
    assert len(list(pixels.batches([[0], [1]]))) == 2  # with new workers


def test_workers_that_cannot_be_started_are_reported(files: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loader.DataLoader, "__iter__", full)
    with pytest.raises(InputError, match="cannot be started: .*No space left on device.*--shm-size"):
        list(PixelLoader(files, [FirstPixel()], workers=1).batches([[0], [1]]))
