"""Training one run in several processes, each with its own device: the same numbers as in one process.

Batch size, learning rate and order of the data are the recipe's. Of every batch, each of P processes runs the head (and
the tower in it) on its own part. Embeddings and logits are then gathered, and every process computes the loss and the
regularizers of the whole batch. So nothing that compares the samples of a batch (a queue of past samples, a contrast
within the batch, sums of class weights, running means) is approximated, and such state is the same in every process.

    z = gather(f(x_p)),   backward: dL/dz_p times P;   g = 1/P sum_p g_p

A parameter before the gathering gets P times its share from each process, and one after it the whole gradient from
each: the mean is right for both, whatever a parameter is used for.

Two things differ from one process: dropout, which each process draws for itself, and batch norm in training mode, which
sees the statistics of a part of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from imbalance_vlm.errors import InputError
from imbalance_vlm.launcher import launched_by_torchrun, local_rank, rank, world_size
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.workers import end_with_parent


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train one run together; this one is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is number 0, the one that writes files."""
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """The value that process 0 passes, in every process; it may be any object that can be pickled."""
        if self.size == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def collect(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values


def process_group() -> ProcessGroup:
    """The processes that this one has joined; a group of one before `join`."""
    if distributed.is_available() and distributed.is_initialized():
        return ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    return ProcessGroup()


def join(device: str = "auto") -> torch.device | None:
    """Connect this process with the others of its run; a second call changes nothing.

    Args:
        device: "auto" (a GPU per process where there are GPUs), "cuda" or "cpu".

    Returns:
        The device of this process, or None for the only process of a run.

    Raises:
        InputError: a single device named for several processes, no GPU, or more processes than GPUs on this machine.
    """
    if world_size() == 1 and not distributed.is_initialized():
        return None
    if device not in ("auto", "cuda", "cpu"):
        raise InputError(
            f"`device` must be auto, cuda or cpu for {world_size()} processes, each of which has its own, "
            f"got {device!r}"
        )
    own_device = resolve_device(device)
    if own_device.type == "cuda":
        if local_rank() >= torch.cuda.device_count():
            raise InputError(
                f"this machine must have a GPU for each of its processes, got {torch.cuda.device_count()} for process "
                f"{local_rank()}, counted from 0; start fewer processes, or set device=cpu"
            )
        own_device = torch.device("cuda", local_rank())
        torch.cuda.set_device(own_device)
    if not distributed.is_initialized():
        if launched_by_torchrun():
            end_with_parent()  # a launcher that is killed cannot end its processes
        backend = "nccl" if own_device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, rank=rank(), world_size=world_size())
    return own_device


@contextmanager
def peer_errors() -> Iterator[None]:
    """Report the end of another process of the run, of which the next exchange with it tells.

    Raises:
        InputError: which process has noticed it, and the reason that the backend gives.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"another process of this run has ended, or cannot be reached from process {rank()}; see what it printed, "
            f"and start all of them again: the run resumes from its last checkpoint ({reason})"
        ) from error
