"""The device of a process, and the memory format that is fastest on it."""

from __future__ import annotations

import torch
from torch import nn

from imbalance_vlm.errors import InputError

FEW_CONVOLUTIONS = 4
"""A network with at most this many convolutions is a transformer, which may need a few to embed its patches."""


def resolve_device(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"`device` must be auto, cpu or a GPU of this machine such as cuda, got {name!r}: {reason}"
        ) from error
    return device


def fast_layout(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to a device; on a GPU, store the weights of a convolutional network channels last.

    Convolution kernels are fastest on that layout, and results change by rounding only. A transformer is left alone.
    """
    module = module.to(device)
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if device.type == "cuda" and len(convolutions) > FEW_CONVOLUTIONS:
        for convolution in convolutions:
            convolution.to(memory_format=torch.channels_last)
    return module
