"""States of the random number generators, to save and restore them, and a stream of random numbers per process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def random_state() -> dict[str, Any]:
    """The state of every global generator that a step may draw from, as tensors and plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


class LocalRandom:
    """A stream of torch's random numbers that differs from process to process.

    Losses that draw random numbers must draw the same in every process; dropout must not, since each process has
    another part of the batch.

    Attributes:
        state: of the stream, for the CPU and the GPU (None where no GPU is used).
    """

    def __init__(self, rank: int) -> None:
        seed = np.random.SeedSequence([torch.initial_seed() % 2**63, rank + 1]).generate_state(1)[0]
        shared = _torch_state()
        torch.manual_seed(int(seed))
        self.state = _torch_state()
        _set_torch_state(shared)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Draw from this stream in the body, and from torch's own again after it."""
        shared = _torch_state()
        _set_torch_state(self.state)
        try:
            yield
        finally:
            self.state = _torch_state()
            _set_torch_state(shared)


def _torch_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _set_torch_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])


def generator_states(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Device and state of the generators that are attributes of a module or of a part of it, by "path:attribute"."""
    return {
        f"{path}:{key}": (str(value.device), value.get_state())
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, torch.Generator)
    }


def set_generator_states(module: nn.Module, states: dict[str, tuple[str, Tensor]]) -> None:
    """Restore what `generator_states` returned."""
    for place, (device, state) in states.items():
        path, _, key = place.partition(":")
        generator = torch.Generator(device)
        generator.set_state(state)
        setattr(module.get_submodule(path), key, generator)
