"""Splitting a batch over the processes, gathering their outputs, averaging their gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.distributed.sharding import is_sharded

BUCKET = 2**23
"""Numbers of the gradient that are sent together."""


def local_rows(rows: Tensor, group: ProcessGroup) -> Tensor:
    """This process's rows of a batch.

    Where a batch has fewer rows than there are processes, some get the first row, of which `gather_rows` keeps nothing.
    """
    if group.size == 1:
        return rows
    part = rows.tensor_split(group.size)[group.rank]
    return part if len(part) else rows[:1]


def gather_rows(local: Tensor, count: int, group: ProcessGroup) -> Tensor:
    """(B, ...) of a batch of B = `count` samples from each process's rows of it; gradients flow to its own rows."""
    if group.size == 1:
        return local
    sizes = [len(part) for part in torch.empty(count, device="meta").tensor_split(group.size)]
    gathered: Tensor = _Gather.apply(local[: sizes[group.rank]], sizes, group.rank)
    return gathered


class _Gather(torch.autograd.Function):
    """Concatenates the parts of a batch, which differ in length where it does not divide evenly."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.begin, ctx.count, ctx.processes = sum(sizes[:rank]), sizes[rank], len(sizes)
        padded = local.new_zeros(max(sizes), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.begin : ctx.begin + ctx.count] * ctx.processes, None, None


def average_gradients(parameters: Iterable[Tensor], group: ProcessGroup) -> None:
    """Replace the gradients by their means over the processes; those of sharded parameters are means already."""
    if group.size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= group.size
        pieces = flat.split([gradient.numel() for gradient in bucket])
        for gradient, piece in zip(bucket, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Lists of tensors of one dtype and device, closed as soon as they hold `BUCKET` numbers."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = open_buckets.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(member.numel() for member in bucket) >= BUCKET:
            yield open_buckets.pop((tensor.dtype, tensor.device))
    yield from open_buckets.values()
