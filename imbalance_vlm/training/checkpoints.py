"""Checkpoints of a run under way, and the trained weights it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically
from imbalance_vlm.progress import note

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """Write a training state in one step: a kill leaves the old file or the new one."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> State | None:
    """The training state at `path`, or None when there is none that can be read (training then starts anew).

    Only tensors and plain values are unpickled.
    """
    if not path.is_file():
        return None
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file, all with one meaning
        note(f"checkpoint {path} cannot be read ({type(error).__name__}); training starts anew")
        return None
    return state


def save_weights(path: Path, module: nn.Module, metadata: dict[str, str]) -> None:
    """The module's state as safetensors, with `metadata` in its header.

    The metadata are one JSON text: safetensors writes several entries in an order that changes from file to file.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    header = {"imbalance_vlm": json.dumps(metadata, sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def load_weights(path: Path, module: nn.Module) -> None:
    """Load what `save_weights` wrote.

    Raises:
        InputError: no such file, or weights of a module of another shape.
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}")
    try:
        module.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of another head: {' '.join(str(error).split())[:300]}") from error
