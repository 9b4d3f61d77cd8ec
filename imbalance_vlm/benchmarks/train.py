"""Tuning an image tower in our way and in that of released code: `imbalance-vlm bench train`.

Both do the same work: JPEG files, ViT-B/16 with AdaptFormer in every block, a cosine head on the class token, logit
adjustment, SGD with momentum, one shuffled pass after another.

[0] github.com/shijxcs/LIFT, trainer.py

The released way is our own writing of what [0] does, so that the comparison does not need its code: the tower of
`imbalance_vlm.benchmarks.released_way`, and a loop with PIL in workers that start again for every pass, float32 (on a
GPU also float16 autocast with a scaled loss), blocking copies of the batches, and `.item()` on loss and accuracy in
every step, which waits for the device. It does without [0]'s meters of single classes and its log for TensorBoard.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.benchmarks.measurement import check_at_least_one, device_name, peak_bytes
from imbalance_vlm.benchmarks.released_way import ReleasedWay
from imbalance_vlm.data.dataset import FileImages, Split
from imbalance_vlm.data.loader import TransformedImages, cores_for_workers
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.sources import PixelSource, Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.cosine import CosineHead
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.training.loop import steps_per_epoch, train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.schedules import cosine
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer, ParallelBottleneck
from imbalance_vlm.tuning.tower_head import TowerHead

CLASSES = 100
LR = 0.01
KIND = "class_token"


def bench_train(
    images: int = 64,
    batch: int = 16,
    model: str = "ViT-B-16",
    width: int = 500,
    height: int = 375,
    repeats: int = 3,
    device: str = "auto",
) -> str:
    """Images per second and peak memory of both ways, run in turn.

    Each runs `repeats` times, one after the other, and the fastest counts, which other work on the machine affects
    least. Images per second are those of a second pass over the images, when everything is warm. CPU time is that of
    this process without its workers, in both passes. Memory is the most that torch has allocated at one moment: on a
    GPU with the model, on the CPU, where the profiler records allocations, without it.

    Args:
        images: images per pass.
        batch: images per step.
        model: an open_clip model with a vision transformer of open_clip's own; its weights are random.
        width: width of the images in pixels.
        height: height of the images in pixels.
        repeats: measurements of each way.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: fewer than two steps in a pass, another image tower, or a device that this machine does not have.
    """
    check(images, batch, repeats)
    torch_device = resolve_device(device)
    with tempfile.TemporaryDirectory() as folder:
        split = generated_images(Path(folder), images, width, height)
        bench = Bench(model, split, batch, torch_device, Path(folder))
        ways: dict[str, Callable[[], float]] = {"ours, fp32": bench.ours, "released way, fp32": bench.released}
        if torch_device.type == "cuda":
            ways |= {"ours, bf16": lambda: bench.ours("bf16"), "released way, fp16": lambda: bench.released(True)}
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        cpu_seconds: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(repeats):
            for way, run in ways.items():
                note(f"{way}, {number + 1} of {repeats} ...")
                begun = time.process_time()
                seconds[way].append(run())
                cpu_seconds[way].append((time.process_time() - begun) / (2 * images))
        note("memory of each ...")
        bench.split = split.take(np.arange(2 * batch))
        memory = {way: peak_bytes(run, torch_device) / 1e6 for way, run in ways.items()}
    lines = [
        f"{model}, AdaptFormer, logit adjustment; {images} JPEG files of {width} x {height}, batch {batch}, "
        f"{device_name(torch_device)}",
        f"{'way':<22} {'images/s':>9} {'CPU s/image':>12} {'MB':>6}",
    ]
    rates = {way: images / min(times) for way, times in seconds.items()}
    cpu = {way: min(times) for way, times in cpu_seconds.items()}
    lines += [f"{way:<22} {rates[way]:9.1f} {cpu[way]:12.3f} {memory[way]:6.0f}" for way in ways]
    for ours, released in zip(list(ways)[::2], list(ways)[1::2], strict=True):
        speed, saving = rates[ours] / rates[released], cpu[released] / cpu[ours]
        lines.append(f"{ours} over {released}: {speed:.2f}x images/s, {saving:.2f}x less CPU time")
    return "\n".join(lines) + "\n"


class Bench:
    """The same training in both ways, of one model and one set of images."""

    def __init__(self, model: str, split: Split, batch: int, device: torch.device, folder: Path) -> None:
        self.encoder = create_encoder(model, pretrained="random")
        self.encoder.module.requires_grad_(False).to(device)
        self.split = split
        self.batch = batch
        self.device = device
        self.folder = folder
        self.tail = LongTail(split.counts(CLASSES), allow_empty=True)

    def ours(self, precision: str = "fp32", source: Source | None = None) -> float:
        """Seconds of a pass of our training loop, over the images or another source."""
        self.encoder.precision = precision
        with AdaptFormer().apply(self.encoder.module, CLASSES) as tuned:
            head = TowerHead(self.encoder, tuned, CosineHead(self.encoder.width(KIND), CLASSES), KIND)
            head.to(self.device)
            objective = Objective(head, create_loss("logit_adjustment", self.tail)).to(self.device)
            source = source or PixelSource(self.split, [self.encoder.preprocessing], self.device)
            optimizer = sgd([p for p in head.parameters() if p.requires_grad], lr=LR, momentum=0.9)
            schedule = cosine(2, steps_per_epoch(source, self.batch))
            sampler = InstanceSampler(torch.from_numpy(self.split.labels), 0)
            trained = train(
                objective,
                source,
                sampler,
                optimizer,
                schedule,
                self.folder,
                settings=TrainingSettings(epochs=2, batch_size=self.batch, checkpoint_seconds=1e9),
            )
        return float(trained.history[-1]["seconds"])

    def released(self, half: bool = False) -> float:
        """Seconds of a pass in the released way."""
        self.encoder.precision = "fp32"
        with AdaptFormer().apply(self.encoder.module, CLASSES) as tuned:
            adapters = [module for module in tuned.added if isinstance(module, ParallelBottleneck)]
            tower = ReleasedWay(tuned.root, adapters).to(self.device)
            return self._released(tower, adapters, half)

    def _released(self, tower: ReleasedWay, adapters: list[ParallelBottleneck], half: bool) -> float:
        head = CosineHead(self.encoder.width(KIND), CLASSES).to(self.device)
        log_prior = (torch.from_numpy(self.tail.counts).float() / len(self.split)).log().to(self.device)
        optimizer = torch.optim.SGD([*tower.adapters.parameters(), head.weight], lr=LR, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 2)
        scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        labels = torch.from_numpy(self.split.labels)
        data = _Labelled(TransformedImages(self.split.images, [self.encoder.preprocessing]), labels)
        workers = cores_for_workers()
        loader = DataLoader(data, self.batch, shuffle=True, num_workers=workers, generator=torch.Generator())
        losses = []
        for _ in range(2):
            begun = time.monotonic()
            for pixels, targets in loader:
                pixels, targets = pixels.to(self.device), targets.to(self.device)
                with torch.autocast(self.device.type, torch.float16, enabled=half):
                    logits = head(tower(pixels))
                    loss = F.cross_entropy(logits + log_prior, targets)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                accuracy = (logits.argmax(1) == targets).float().mean()
                losses.append((loss.item(), accuracy.item()))
            schedule.step()
            seconds = time.monotonic() - begun
        return seconds


class _Labelled(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, images: TransformedImages, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def generated_images(folder: Path, count: int, width: int, height: int) -> Split:
    """Generated JPEG files of `CLASSES` classes with structure at all scales; 500 x 375 pixels take about 0.1 MB."""
    rng = np.random.default_rng(0)
    names = tuple(f"{number}.jpg" for number in range(count))
    for name in names:
        total = np.zeros((height, width, 3), np.float32)
        for cells in (4, 16, 64, 256):
            small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 4
        Image.fromarray(total.astype(np.uint8)).save(folder / name, quality=90)
    return Split(FileImages(folder, names), rng.geometric(0.05, count).clip(1, CLASSES) - 1)


def check(images: int, batch: int, repeats: int) -> None:
    """Check that a benchmark has something to measure.

    Raises:
        InputError: fewer than two steps in a pass, or no repeats.
    """
    check_at_least_one(repeats=repeats)
    if not 1 <= batch <= images // 2:
        raise InputError(
            f"`batch` must be from 1 to half of `images`, so that a pass has two steps, got {batch} and {images}"
        )
