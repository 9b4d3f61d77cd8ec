"""Whether images come as fast as they are used: `imbalance-vlm bench data`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from imbalance_vlm.benchmarks.train import Bench, check, generated_images
from imbalance_vlm.data.dataset import Split
from imbalance_vlm.data.loader import DECODERS, Decoder, cores_for_workers
from imbalance_vlm.data.preprocessing import View
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.sources import FeatureSource, PixelSource
from imbalance_vlm.progress import note


def bench_data(
    images: int = 64,
    batch: int = 16,
    model: str = "ViT-B-16",
    width: int = 500,
    height: int = 375,
    precision: str = "fp32",
    device: str | None = None,
) -> str:
    """Images per second of loading alone, of compute alone and of both together, on generated JPEG files.

    Loading is decoding, scaling, cropping and normalising in the workers, by PIL, by PIL from copies that have the
    model's size (`encoder.resized`), by torchvision, and on a GPU by that; compute is the training step of `bench
    train` on images that are on the device already. A number is that of a second pass.

    Args:
        images: images to a pass.
        batch: images to a step.
        model: an open_clip model; its weights are random.
        width, height: of the images.
        precision: "fp32" or "bf16".
        device: "cpu" or "cuda"; left out, a GPU where there is one.

    Raises:
        InputError: numbers that do not fit.
    """
    check(images, batch, 1)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        split = generated_images(Path(folder), images, width, height)
        size = (Path(folder) / "0.jpg").stat().st_size
        bench = Bench(model, split, batch, where, Path(folder))
        views: list[View] = [bench.encoder.preprocessing]
        rows = torch.arange(images).split(batch)
        decoders: tuple[Decoder, ...] = DECODERS if where.type == "cuda" else ("pil", "torchvision")
        ways: dict[str, tuple[Split, Decoder]] = {decoder: (split, decoder) for decoder in decoders}
        copies = resized_split(split, bench.encoder.preprocessing.size[1], folder=Path(folder) / "copies")
        ways["pil, copies"] = (copies, "pil")
        for way, (split_of_way, decoder) in ways.items():
            note(f"loading by {way} ...")
            source = PixelSource(split_of_way, views, where, decoder)
            for _ in range(2):
                begun = time.monotonic()
                pixels = [batch for batch, _ in source.batches(rows)]
                if where.type == "cuda":
                    torch.cuda.synchronize()
                rates[f"loading alone, {way}"] = images / (time.monotonic() - begun)
        note("compute ...")
        there = FeatureSource([torch.cat(pixels).cpu().numpy()], split.labels, where)
        rates["compute alone"] = images / bench.ours(precision, there)
        for way, (split_of_way, decoder) in ways.items():
            note(f"both, {way} ...")
            source = PixelSource(split_of_way, views, where, decoder)
            rates[f"together, {way}"] = images / bench.ours(precision, source)
    name = torch.cuda.get_device_name() if where.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"{images} JPEG files of {width} x {height} ({size / 1e3:.0f} kB), {cores_for_workers()} workers; "
        f"{model} with AdaptFormer, {precision}, batch {batch}, {name}",
        *(f"{what:<28} {rate:9.1f} images/s" for what, rate in rates.items()),
    ]
    share = rates["together, pil"] / rates["compute alone"]
    limit = "compute" if rates["loading alone, pil"] > rates["compute alone"] else "loading"
    lines.append(f"together is {100 * share:.0f} % of compute alone; the limit is {limit}")
    return "\n".join(lines) + "\n"
