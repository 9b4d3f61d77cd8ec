"""Text features of any number of classes in the memory of a few: two passes over chunks of classes.

[0] Gao, Zhang, Han, Callan. Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup. RepL4NLP 2021
    (the same two passes over the batch of a contrastive loss).

    pass 1: t_c = f(c, theta) for all classes, without a graph;  the loss gives g_c = dL/dt_c
    pass 2: dL/dtheta = sum over chunks of sum_{c in chunk} g_c df(c, theta)/dtheta, each f(c, .) computed again

The gradient is exact, also if the loss uses theta in other ways: the features are an ordinary differentiable tensor.
The cost is one more forward pass, and the activations of one chunk are kept at a time.

Differs from [0] in: the chunks run over the classes, and the second pass is the backward of one autograd function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Encode = Callable[..., Tensor]
"""(rows, *inputs) -> (len(rows), d); of an input with one entry per class, only the entries of the rows are passed."""


def pack(lengths: Sequence[int], most: int, fits: Callable[[int, int], bool]) -> list[list[int]]:
    """Positions 0..n-1 in chunks of similar length, so that short texts are not padded to long ones.

    Args:
        lengths: tokens per text.
        most: most texts in a chunk.
        fits: whether a chunk may hold this number of texts of this length; it holds one in any case.
    """
    chunks: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not chunks or len(chunks[-1]) >= most or not fits(len(chunks[-1]) + 1, lengths[position]):
            chunks.append([])
        chunks[-1].append(position)
    return chunks


def one_pass(encode: Encode, chunks: Sequence[Tensor], by_class: Sequence[bool], *inputs: Tensor) -> Tensor:
    """The features of all chunks' classes, in the chunks' order."""
    return torch.cat([encode(rows, *_parts(rows, by_class, inputs)) for rows in chunks])


def two_pass(encode: Encode, chunks: Sequence[Tensor], by_class: Sequence[bool], *inputs: Tensor) -> Tensor:
    """`one_pass` whose backward computes each chunk again.

    Args:
        encode: see `Encode`; deterministic.
        chunks: class indices of each chunk; no class occurs twice.
        by_class: which inputs have one entry per class.
        inputs: everything that `encode` is differentiated with respect to.
    """
    features: Tensor = _TwoPass.apply(encode, chunks, by_class, *inputs)
    return features


class _TwoPass(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, encode: Encode, chunks: Sequence[Tensor], by_class: Sequence[bool], *inputs: Tensor
    ) -> Tensor:
        ctx.encode, ctx.chunks, ctx.by_class = encode, chunks, by_class
        ctx.save_for_backward(*inputs)
        device = inputs[0].device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        return one_pass(encode, chunks, by_class, *inputs)  # without a graph, as in any autograd function

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[3:]
        sums = [torch.zeros_like(value) if need else None for value, need in zip(inputs, needed, strict=True)]
        device, dtype, enabled = ctx.autocast
        slices = grad.split([len(rows) for rows in ctx.chunks])
        for rows, part_of_grad in zip(ctx.chunks, slices, strict=True):
            parts = [part.detach() for part in _parts(rows, ctx.by_class, inputs)]
            for part, need in zip(parts, needed, strict=True):
                part.requires_grad_(need)
            with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled):
                features = ctx.encode(rows, *parts)
            if not features.requires_grad:  # a chunk without anything that is learned
                continue
            numbers = [number for number, need in enumerate(needed) if need]
            values = torch.autograd.grad(
                features, [parts[number] for number in numbers], part_of_grad, allow_unused=True
            )
            for number, value in zip(numbers, values, strict=True):
                if value is not None:
                    _add(sums[number], rows if ctx.by_class[number] else None, value)
        return None, None, None, *sums


def _parts(rows: Tensor, by_class: Sequence[bool], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [
        value[rows.to(value.device)] if per_class else value for value, per_class in zip(inputs, by_class, strict=True)
    ]


def _add(total: Tensor | None, rows: Tensor | None, value: Tensor) -> None:
    if total is not None:
        if rows is None:
            total += value
        else:
            total[rows.to(total.device)] += value
