"""What each loss costs beside cross-entropy: `imbalance-vlm bench losses`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.losses.paco import PaCo
from imbalance_vlm.components import catalogue
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note

WIDTH = 512  # d of the embeddings, which paco and gpaco compare with their queue
STEPS = 3
BASE = "cross_entropy"
OF_EACH_EXPERT = {"sade": 3}  # experts whose logits the loss reads: (N, 3, C), as its head gives them


def bench_losses(batch: int = 512, classes: int = 8142, repeats: int = 5, names: Sequence[str] | None = None) -> str:
    """Forward and backward of every loss at logits (batch, classes), as multiples of cross-entropy's.

    Time: the two are run in turn, a loss between two runs of cross-entropy, so that whatever else the machine does
    falls on both; the ratio is the median over `repeats` of the loss's time over the mean of its two neighbours.

    Memory: the most that torch's allocator holds at one moment beyond logits, targets and embeddings, gradients
    included, plus the loss's own buffers, such as a queue. On a GPU the allocator says so itself; on the CPU its
    profiler notes each allocation and release, and the highest running sum is taken. That counts every temporary and
    nothing of other processes, which the size of the process would not.

    A queue is full before anything is measured, and epochs have begun.

    Args:
        batch: N.
        classes: C; their counts fall geometrically from 1000 to 2.
        repeats: how often each loss is timed.
        names: losses to measure; all that are registered unless given.

    Raises:
        InputError: an unknown loss, or a number below 1.
    """
    for name, number in (("batch", batch), ("classes", classes), ("repeats", repeats)):
        if number < 1:
            raise InputError(f"`{name}` must be at least 1, got {number}")
    catalogue.load_plugins()
    chosen = [catalogue.LOSSES.get(name).name for name in names or catalogue.LOSSES.names()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = _Bench(BASE, batch, classes, device)
    base_memory = base.peak()
    rows = []
    for name in chosen:
        note(f"{name} ...")
        loss = _Bench(name, batch, classes, device)
        memory = loss.peak()
        times, ratios = [], []
        loss.seconds()  # the allocator settles on what the two need
        base.seconds()
        before = base.seconds()
        for _ in range(repeats):
            own, after = loss.seconds(), base.seconds()
            times.append(own)
            ratios.append(own / ((before + after) / 2))
            before = after
        rows.append((name, 1e3 * statistics.median(times), statistics.median(ratios), memory, memory / base_memory))
        del loss
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    lines = [
        f"forward + backward at ({batch}, {classes}), float32, {where}; ratios to {BASE}, median of {repeats}",
        f"{'loss':<20} {'ms':>8} {'time':>6} {'MiB':>8} {'memory':>7}",
        *(f"{name:<20} {ms:8.1f} {time_:6.2f} {mib / 2**20:8.1f} {ratio:7.2f}" for name, ms, time_, mib, ratio in rows),
    ]
    return "\n".join(lines) + "\n"


class _Bench:
    """One loss with inputs of its own, warmed up."""

    def __init__(self, name: str, batch: int, classes: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        counts = torch.logspace(3, 0.30103, classes).round().long()  # 1000 .. 2
        self.device = device
        self.loss: Loss = create_loss(name, LongTail(counts.numpy())).to(device)
        experts = OF_EACH_EXPERT.get(name)
        shape = (batch, classes) if experts is None else (batch, experts, classes)
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
        """Of the fastest of a few steps, which other work on the machine has disturbed the least."""
        taken = []
        for _ in range(STEPS):
            self._wait()
            begun = time.perf_counter()
            self.step()
            self._wait()
            taken.append(time.perf_counter() - begun)
        return min(taken)

    def peak(self) -> float:
        """Bytes at the highest point of a step, beyond its inputs."""
        self.logits.grad = self.embeddings.grad = None
        held = sum(buffer.numel() * buffer.element_size() for buffer in self.loss.buffers())
        if self.device.type == "cuda":
            self._wait()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            self._wait()
            return held + torch.cuda.max_memory_allocated(self.device) - before
        return held + peak_on_cpu(self.step)

    def _fill(self) -> None:
        """Give the loss as many samples as its queue holds."""
        if isinstance(self.loss, PaCo):
            size = len(self.loss.key_labels)
            keys = F.normalize(torch.randn(size, WIDTH, device=self.device), dim=1)
            self.loss.enqueue(keys, torch.randint(self.logits.shape[-1], (size,), device=self.device))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_on_cpu(step: Callable[[], None]) -> int:
    """The highest running sum of what torch's CPU allocator gives out and takes back during `step`."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages, which say nothing of the losses
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    highest = now = 0
    for _, change in changes:
        now += change
        highest = max(highest, now)
    return highest
