"""Images to batches: workers that stay, and two decoders that agree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1

from imbalance_vlm import InputError
from imbalance_vlm.data import loading
from imbalance_vlm.data.dataset import ArrayImages, FileImages
from imbalance_vlm.data.decoders import decode, on_tensors, on_whole_batch
from imbalance_vlm.data.loader import PixelLoader, cores_for_workers

CPU = torch.device("cpu")
BICUBIC = v1.InterpolationMode.BICUBIC


def preprocessing(size: int = 16) -> v1.Compose:
    """As open_clip makes it."""

    def _convert_to_rgb(image: Image.Image) -> Image.Image:
        return image.convert("RGB")

    steps = [v1.Resize(size, BICUBIC), v1.CenterCrop(size), _convert_to_rgb, v1.ToTensor()]
    return v1.Compose([*steps, v1.Normalize((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))])


class ToTensor:
    """An image's numbers, and in the last place the process that made them."""

    def __init__(self, add: int = 0) -> None:
        self.add = add

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.cat([torch.tensor(np.array(image)).flatten()[:3].long() + self.add, torch.tensor([os.getpid()])])


def smooth(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def files(tmp_path: Path) -> FileImages:
    for number in range(6):
        Image.new("RGB", (4, 4), (number, number, number)).save(tmp_path / f"{number}.png")
    return FileImages(tmp_path, tuple(f"{number}.png" for number in range(6)))


# -- workers ---------------------------------------------------------------------------------------------------------


def seen(batches: Iterator[Tensor]) -> tuple[list[list[int]], set[int]]:
    """Numbers of the images, and who decoded them."""
    found = list(batches)
    return [batch[:, 0].tolist() for batch in found], {int(one) for batch in found for one in batch[:, -1]}


def test_batches_come_in_order_and_from_the_view(files: FileImages) -> None:
    loader = PixelLoader(files, [ToTensor(), ToTensor(100)], workers=2)
    assert seen(loader.batches([[5, 0], [3], [1, 1]]))[0] == [[5, 0], [3], [1, 1]]
    assert seen(loader.batches([[2], [4, 0]], view=1))[0] == [[102], [104, 100]]


def test_workers_stay_from_pass_to_pass(files: FileImages) -> None:
    loader = PixelLoader(files, [ToTensor()], workers=1)
    passes = [seen(loader.batches([[0], [1], [2]])) for _ in range(2)]
    assert passes[0] == passes[1]
    assert os.getpid() not in passes[0][1]


def test_a_pass_that_was_left_leaves_nothing_behind(files: FileImages) -> None:
    loader = PixelLoader(files, [ToTensor()], workers=2)
    begun = loader.batches([[0], [1], [2], [3], [4]])
    next(begun)
    begun.close()
    assert seen(loader.batches([[5], [4]]))[0] == [[5], [4]]


def test_two_passes_at_once(files: FileImages) -> None:
    loader = PixelLoader(files, [ToTensor()], workers=1)
    first, second = loader.batches([[0], [1]]), loader.batches([[2], [3]])
    found = [int(next(one)[0, 0]) for one in (first, second, first, second)]
    assert found == [0, 2, 1, 3]


def test_one_batch_and_images_in_memory_need_no_worker(files: FileImages) -> None:
    assert seen(PixelLoader(files, [ToTensor()]).batches([[1, 2]]))[1] == {os.getpid()}
    pixels = np.arange(4 * 12, dtype=np.uint8).reshape(4, 2, 2, 3)
    found, by = seen(PixelLoader(ArrayImages(pixels), [ToTensor()]).batches([[3], [0, 1]]))
    assert (found, by) == ([[36], [0, 12]], {os.getpid()})


def test_reading_ahead_leaves_the_global_generator_alone(files: FileImages) -> None:
    before = torch.get_rng_state()
    seen(PixelLoader(files, [ToTensor()], workers=1).batches([[0], [1]]))
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_on_one_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.os, "cpu_count", lambda: 12)
    assert cores_for_workers() == 12
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores_for_workers() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert cores_for_workers() == 1


# -- decoders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_png_files_give_equal_pixels(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    smooth(0, 30, 20).convert(mode).save(path)
    wanted = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(decode(path).permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("settings", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpeg_files_give_nearly_equal_pixels(settings: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    smooth(0, 61, 47).save(path, quality=90, **settings)
    wanted = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert np.abs(decode(path).permute(1, 2, 0).numpy() - wanted).max() <= 2


@pytest.mark.parametrize(("suffix", "mode"), [("jpg", "CMYK"), ("bmp", "RGB"), ("gif", "P"), ("png", "I;16")])
def test_what_torchvision_does_not_read_as_pil_does(suffix: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    if mode == "I;16":
        Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100).save(path)
    else:
        smooth(0, 30, 20).convert(mode).save(path)
    wanted = np.asarray(FileImages(tmp_path, (path.name,))[0]).astype(int)
    assert np.abs(decode(path).permute(1, 2, 0).numpy() - wanted).max() <= 2


@pytest.mark.parametrize(("width", "height"), [(60, 40), (17, 90), (16, 16), (9, 12)])
def test_preprocessing_on_tensors_is_that_on_images(width: int, height: int) -> None:
    image = smooth(1, width, height)
    on_tensor = on_tensors(preprocessing())
    assert on_tensor is not None
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    found, wanted = on_tensor(tensor), preprocessing()(image)
    assert found.shape == wanted.shape == (3, 16, 16)
    assert float((found - wanted).abs().max()) <= 1.01 / 255 / 0.2, "one step of 255 before it is divided"
    torch.testing.assert_close(on_tensor(torch.stack([tensor, tensor]))[1], found)


def test_the_libraries_own_preprocessing_has_a_counterpart(tiny_clip: str) -> None:
    """They change the names of its steps from version to version."""
    import timm
    from timm.data import create_transform, resolve_data_config

    from imbalance_vlm import create_encoder

    net = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8)
    image = smooth(3, 60, 40)
    for transform, size in (
        (create_encoder(tiny_clip).transform, 16),
        (create_transform(**(resolve_data_config(model=net) | {"input_size": (3, 16, 16)})), 16),
    ):
        on_tensor = on_tensors(transform)
        assert on_tensor is not None
        found = on_tensor(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        assert float((found - transform(image)).abs().max()) <= 1.01 / 255 / 0.22
        exact = on_whole_batch(transform, size, size) if "CenterCrop" in str(transform) else None
        if exact is not None:
            images = memory(4, size, size)
            wanted = torch.stack([transform(images[row]) for row in range(4)])
            assert torch.equal(exact(torch.from_numpy(images.pixels).permute(0, 3, 1, 2)), wanted)


def test_a_transform_of_ones_own_stays_with_pil(files: FileImages) -> None:
    assert on_tensors(ToTensor()) is None
    assert on_tensors(v1.Compose([v1.Resize(4), v1.RandomCrop(3), v1.ToTensor()])) is None
    found = seen(PixelLoader(files, [ToTensor()], "torchvision").batches([[1, 2]]))[0]
    assert found == [[1, 2]]


def test_both_decoders_through_the_loader(tmp_path: Path) -> None:
    for number in range(3):
        smooth(number, 40, 30).save(tmp_path / f"{number}.png")
    images = FileImages(tmp_path, ("0.png", "1.png", "2.png"))
    pil, other = (
        next(PixelLoader(images, [preprocessing()], decoder).batches([[2, 0]])) for decoder in ("pil", "torchvision")
    )
    assert float((pil - other).abs().max()) <= 1.01 / 255 / 0.2


def test_views_and_images_in_memory_leave_pil_too() -> None:
    from imbalance_vlm.data.decoders import OnImage
    from imbalance_vlm.encoders.features import CroppedView

    pixels = np.stack([np.asarray(smooth(number, 40, 30)) for number in range(3)])
    for transform in (preprocessing(), CroppedView(preprocessing(), 1, 0.3, True)):
        pil, other = (
            PixelLoader(ArrayImages(pixels), [transform], decoder)  # type: ignore[arg-type]
            for decoder in ("pil", "torchvision")
        )
        changed = other.dataset.transforms[0]
        assert isinstance(getattr(changed, "base", changed), OnImage)
        first, second = (next(loader.batches([[2, 0]])) for loader in (pil, other))
        assert 0 < float((first - second).abs().max()) <= 1.01 / 255 / 0.2


@pytest.mark.parametrize("decoder", ["pil", "torchvision"])
def test_a_file_that_cannot_be_read_is_named(decoder: loading.Decoder, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"image 'bad\.png' cannot be read"):
        next(PixelLoader(FileImages(tmp_path, ("bad.png",)), [preprocessing()], decoder).batches([[0]]))


def test_an_unknown_decoder(files: FileImages) -> None:
    with pytest.raises(InputError, match="`decoder` must be 'pil', 'torchvision' or 'gpu', got 'nvjpeg'"):
        PixelLoader(files, [ToTensor()], "nvjpeg")  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_worker_s_error_is_one_line(workers: int, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    loader = PixelLoader(FileImages(tmp_path, ("a.png", "bad.png")), [preprocessing()], workers=workers)
    with pytest.raises(InputError, match=r"^image 'bad\.png' cannot be read: cannot identify image file [^\n]*$"):
        list(loader.batches([[0], [1]]))


# -- whole batches ---------------------------------------------------------------------------------------------------


def memory(count: int, height: int, width: int) -> ArrayImages:
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("exact", [True, False])
def test_images_in_memory_of_the_model_s_size_are_one_batch_to_the_last_bit(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = memory(5, 16, 16 if exact else 18)
    loader = PixelLoader(images, [preprocessing()])
    one_by_one = torch.stack([preprocessing()(images[row]) for row in (4, 0, 2)])
    if exact:
        monkeypatch.setattr(loading.TransformedImages, "__getitem__", None)  # no image is made on the way
    (found,) = loader.batches([[4, 0, 2]])
    assert torch.equal(found, one_by_one)


@pytest.mark.parametrize(
    ("height", "width", "steps", "whole"),
    [
        (16, 16, [v1.Resize(16), v1.CenterCrop(16), v1.ToTensor()], True),
        (16, 16, [v1.Resize((16, 16)), v1.ToTensor()], True),
        (16, 20, [v1.Resize(16), v1.ToTensor()], True),
        (16, 20, [v1.Resize(16), v1.CenterCrop(16), v1.ToTensor()], False),
        (20, 16, [v1.Resize((16, 20)), v1.ToTensor()], False),
        (16, 16, [v1.Resize(16), v1.CenterCrop((14, 16)), v1.ToTensor()], False),
        (16, 16, [v1.Resize(15), v1.ToTensor()], False),
        (16, 16, [v1.RandomHorizontalFlip(), v1.ToTensor()], False),
        (16, 16, [v1.Resize(16)], False),
    ],
)
def test_only_what_leaves_the_pixels_alone_is_done_for_whole_batches(
    height: int, width: int, steps: list[Any], whole: bool
) -> None:
    found = on_whole_batch(v1.Compose(steps), height, width)
    assert (found is not None) == whole
    if found is not None:
        images = memory(3, height, width)
        wanted = torch.stack([v1.Compose(steps)(images[row]) for row in range(3)])
        assert torch.equal(found(torch.from_numpy(images.pixels).permute(0, 3, 1, 2)), wanted)


def test_others_in_memory_go_through_torchvision_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = memory(4, 20, 30)
    pil = next(PixelLoader(images, [preprocessing()]).batches([[3, 1]]))
    monkeypatch.setattr(loading.TransformedImages, "__getitem__", None)
    found = next(PixelLoader(images, [preprocessing()], "torchvision").batches([[3, 1]]))
    assert float((found - pil).abs().max()) <= 1.01 / 255 / 0.2


# -- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> FileImages:
    """A JPEG file, a PNG file, one that lies about its kind, a CMYK one, and one that is no image."""
    for number, name in enumerate(("a.jpg", "b.png")):
        smooth(number, 40, 30).save(tmp_path / name, quality=95)
    smooth(2, 30, 40).save(tmp_path / "c.png")
    (tmp_path / "c.png").rename(tmp_path / "c.jpg")
    smooth(3, 30, 40).convert("CMYK").save(tmp_path / "d.jpg", quality=95)
    (tmp_path / "e.jpg").write_bytes(b"\xff\xd8 no image")
    return FileImages(tmp_path, ("a.jpg", "b.png", "c.jpg", "d.jpg", "e.jpg"))


def test_without_a_gpu_its_decoder_is_torchvision_s(photographs: FileImages) -> None:
    wanted, found = (
        next(PixelLoader(photographs, [preprocessing()], decoder).batches([[0, 1, 2, 3]]))
        for decoder in ("torchvision", "gpu")
    )
    assert torch.equal(wanted, found)


class OnAGpu:
    """A loader for a GPU, on a machine without one: its batches are decoded by the CPU."""

    def __new__(cls, images: FileImages, transform: Any) -> PixelLoader:  # type: ignore[misc]
        loader = PixelLoader(images, [transform], device=CPU, workers=1)
        loader.dataset = loading.TransformedImages(images, [transform], "gpu")
        return loader


def test_workers_read_and_the_device_decodes(photographs: FileImages, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[list[int]] = []
    real = loading.decode_on

    def seen(device: torch.device, files: list[Tensor]) -> list[Tensor]:
        decoded.append([content.ndim for content in files])
        return real(device, files)

    monkeypatch.setattr(loading, "decode_on", seen)
    found = list(OnAGpu(photographs, preprocessing()).batches([[0, 1], [2, 3]]))
    assert decoded == [[1, 3], [3, 1]], "bytes of JPEG files, images of others"
    wanted = list(PixelLoader(photographs, [preprocessing()]).batches([[0, 1], [2, 3]]))
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= 3 / 255 / 0.2
    with pytest.raises(InputError, match=r"batch that begins with a\.jpg, e\.jpg cannot be read"):
        list(OnAGpu(photographs, preprocessing()).batches([[0, 4]]))


def test_crops_are_not_for_the_gpu(photographs: FileImages) -> None:
    from imbalance_vlm.encoders.features import CroppedView

    transform = CroppedView(preprocessing(), 1, 0.3, True)
    wanted = next(PixelLoader(photographs, [transform], "torchvision").batches([[0, 1]]))
    assert torch.equal(next(OnAGpu(photographs, transform).batches([[0, 1]])), wanted)


@pytest.mark.gpu
def test_a_gpu_decodes_and_scales(photographs: FileImages) -> None:
    gpu = torch.device("cuda")
    wanted = list(PixelLoader(photographs, [preprocessing()]).batches([[0, 1], [2, 3]]))
    found = list(PixelLoader(photographs, [preprocessing()], "gpu", device=gpu).batches([[0, 1], [2, 3]]))
    for one, other in zip(found, wanted, strict=True):
        assert one.is_cuda
        assert float((one.cpu() - other).abs().max()) <= 4 / 255 / 0.2
