"""Loading images, computing on them, and both together, in images per second: `imbalance-vlm bench data`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Literal

import torch

from imbalance_vlm.benchmarks.measurement import device_name, synchronize
from imbalance_vlm.benchmarks.train import Bench, check, generated_images
from imbalance_vlm.components.settings import check_arguments
from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loader import DECODERS, Decoder, cores_for_workers
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import resolve_device


def bench_data(
    images: int = 64,
    batch: int = 16,
    model: str = "ViT-B-16",
    width: int = 500,
    height: int = 375,
    precision: str = "fp32",
    device: str = "auto",
) -> str:
    """Images per second of loading alone, of compute alone and of both together, on generated JPEG files.

    Loading means decoding, resizing, cropping and normalizing in the workers: by PIL, by PIL from copies at the model's
    size (`encoder.resized`), by torchvision, and on a GPU by that. Compute is the training step of `bench train` on
    images that are on the device already. Every rate is that of a second pass.

    Args:
        images: images per pass.
        batch: images per step.
        model: an open_clip model; its weights are random.
        width: width of the images in pixels.
        height: height of the images in pixels.
        precision: "fp32" or "bf16".
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: fewer than two steps in a pass, or a device that this machine does not have.
    """
    check(images, batch, 1)
    check_arguments(precision=(Literal["fp32", "bf16"], precision))
    torch_device = resolve_device(device)
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        split = generated_images(Path(folder), images, width, height)
        size = (Path(folder) / "0.jpg").stat().st_size
        bench = Bench(model, split, batch, torch_device, Path(folder))
        views: list[View] = [bench.encoder.preprocessing]
        rows = torch.arange(images).split(batch)
        decoders: tuple[Decoder, ...] = DECODERS if torch_device.type == "cuda" else ("pil", "torchvision")
        ways: dict[str, tuple[Split, Decoder]] = {decoder: (split, decoder) for decoder in decoders}
        copies = resized_split(split, bench.encoder.preprocessing.size[1], folder=Path(folder) / "copies")
        ways["pil, copies"] = (copies, "pil")
        for way, (split_to_read, decoder) in ways.items():
            note(f"loading by {way} ...")
            source = PixelSource(split_to_read, views, torch_device, decoder)
            for _ in range(2):
                begun = time.monotonic()
                batches = [pixels for pixels, _ in source.batches(rows)]
                synchronize(torch_device)
                rates[f"loading alone, {way}"] = images / (time.monotonic() - begun)
        note("compute ...")
        loaded = FeatureSource([torch.cat(batches).cpu().numpy()], split.labels, torch_device)
        rates["compute alone"] = images / bench.ours(precision, loaded)
        for way, (split_to_read, decoder) in ways.items():
            note(f"both, {way} ...")
            source = PixelSource(split_to_read, views, torch_device, decoder)
            rates[f"together, {way}"] = images / bench.ours(precision, source)
    lines = [
        f"{images} JPEG files of {width} x {height} ({size / 1e3:.0f} kB), {cores_for_workers()} workers; "
        f"{model} with AdaptFormer, {precision}, batch {batch}, {device_name(torch_device)}",
        *(f"{name:<28} {rate:9.1f} images/s" for name, rate in rates.items()),
    ]
    share = rates["together, pil"] / rates["compute alone"]
    limit = "compute" if rates["loading alone, pil"] > rates["compute alone"] else "loading"
    lines.append(f"together is {100 * share:.0f} % of compute alone; the limit is {limit}")
    return "\n".join(lines) + "\n"
