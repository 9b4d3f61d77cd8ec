"""Time and memory of every loss relative to cross-entropy: `imbalance-vlm bench losses`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.paco import PaCo
from imbalance_vlm.benchmarks.measurement import check_at_least_one, device_name, peak_bytes, synchronize
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import offer
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import resolve_device

WIDTH = 512
"""Width d of the embeddings, which paco and gpaco compare with their queue."""
LOGIT_SCALE = 30.0
"""Scale of the head, for the losses on cosines."""
STEPS = 3
BASELINE = "cross_entropy"


def bench_losses(
    batch: int = 512,
    classes: int = 8142,
    repeats: int = 5,
    names: Sequence[str] | None = None,
    device: str = "auto",
) -> str:
    """Forward and backward pass of every loss at logits (batch, classes), relative to cross-entropy.

    Time: each loss is timed between two runs of cross-entropy, so that other work on the machine affects both; the
    ratio is the median over `repeats` of the loss's time over the mean of the two.

    Memory: the most that torch's allocator holds at one moment beyond logits, targets and embeddings, gradients
    included, plus the loss's own buffers, such as a queue. This counts every temporary tensor and nothing of other
    processes, which the size of the process would not.

    Queues are full and epochs have begun before anything is measured.

    Args:
        batch: rows N of the logits.
        classes: columns C of the logits; the class counts fall geometrically from 1000 to 2.
        repeats: how often each loss is timed.
        names: losses to measure; all registered ones by default.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: an unknown loss, a number below 1, or a device that this machine does not have.
    """
    check_at_least_one(batch=batch, classes=classes, repeats=repeats)
    catalogue.load_plugins()
    chosen = [catalogue.LOSSES.get(name).name for name in names or catalogue.LOSSES.names()]
    torch_device = resolve_device(device)
    baseline = _Bench(BASELINE, batch, classes, torch_device)
    baseline_memory = baseline.peak()
    rows = []
    for name in chosen:
        note(f"{name} ...")
        loss = _Bench(name, batch, classes, torch_device)
        memory = loss.peak()
        times, ratios = [], []
        loss.seconds()  # the allocator settles on what the two need
        baseline.seconds()
        before = baseline.seconds()
        for _ in range(repeats):
            seconds, after = loss.seconds(), baseline.seconds()
            times.append(seconds)
            ratios.append(seconds / ((before + after) / 2))
            before = after
        rows.append((name, 1e3 * statistics.median(times), statistics.median(ratios), memory, memory / baseline_memory))
        del loss
    lines = [
        f"forward + backward at ({batch}, {classes}), float32, {device_name(torch_device)}; ratios to {BASELINE}, "
        f"median of {repeats}",
        f"{'loss':<20} {'ms':>8} {'time':>6} {'MiB':>8} {'memory':>7}",
        *(
            f"{name:<20} {ms:8.1f} {time_ratio:6.2f} {size / 2**20:8.1f} {memory_ratio:7.2f}"
            for name, ms, time_ratio, size, memory_ratio in rows
        ),
    ]
    return "\n".join(lines) + "\n"


class _Bench:
    """One loss with its inputs, warmed up."""

    def __init__(self, name: str, batch: int, classes: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        counts = torch.logspace(3, 0.30103, classes).round().long()  # 1000 .. 2
        self.device = device
        offers = offer(long_tail=LongTail(counts.numpy()), logit_scale=LOGIT_SCALE)
        self.loss: Loss = catalogue.LOSSES.make({"name": name}, offers).to(device)
        shape = (batch, self.loss.experts, classes) if self.loss.experts else (batch, classes)
        self.logits = torch.randn(shape, generator=generator).to(device).requires_grad_()
        self.embeddings = torch.randn(batch, WIDTH, generator=generator).to(device).requires_grad_()
        self.targets = torch.randint(classes, (batch,), generator=generator).to(device)
        self.loss.on_epoch(0, 1)
        self._fill()
        self.step()

    def step(self) -> None:
        """A forward and a backward pass."""
        self.logits.grad = self.embeddings.grad = None
        self.loss(self.logits, self.targets, self.embeddings).backward()

    def seconds(self) -> float:
        """Seconds of the fastest of a few steps, the one that other work on the machine has disturbed the least."""
        seconds = []
        for _ in range(STEPS):
            synchronize(self.device)
            begun = time.perf_counter()
            self.step()
            synchronize(self.device)
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    def peak(self) -> int:
        """Bytes at the highest point of a step, beyond its inputs."""
        self.logits.grad = self.embeddings.grad = None
        buffers = sum(buffer.numel() * buffer.element_size() for buffer in self.loss.buffers())
        before = torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
        return buffers + peak_bytes(self.step, self.device) - before

    def _fill(self) -> None:
        """Fill the loss's queue."""
        if isinstance(self.loss, PaCo):
            size = len(self.loss.key_labels)
            keys = F.normalize(torch.randn(size, WIDTH, device=self.device), dim=1)
            self.loss.enqueue(keys, torch.randint(self.logits.shape[-1], (size,), device=self.device))
