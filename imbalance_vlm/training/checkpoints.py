"""Checkpoints of unfinished trainings, and files of trained weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from imbalance_vlm.encoders.base import check_base
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import read_safetensors_header, write_atomically
from imbalance_vlm.progress import note
from imbalance_vlm.training.distributed.processes import process_group
from imbalance_vlm.training.distributed.sharding import full_state, load_module_state

State = dict[str, Any]
CHECKPOINT_FILE = "checkpoint.pt"
"""The state of an unfinished training, in the folder of a run."""
HISTORY_FILE = "metrics.jsonl"
"""What is recorded of each finished epoch, in the folder of a run."""
WEIGHTS_FILE = "head.safetensors"
"""The trained weights in the folder of a run."""


def save_checkpoint(path: Path, state: State) -> None:
    """Write a training state atomically: after a kill, or on a full disk, the file is the old one or the new one.

    Raises:
        InputError: the file cannot be written.
    """
    with _write_errors(path):
        write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path) -> State | None:
    """The training state at `path`, or None where there is none that can be read (training then starts over).

    Only tensors and plain values are unpickled.
    """
    if not path.is_file():
        return None
    try:
        state: State = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged file
        note(f"checkpoint {path} cannot be read ({type(error).__name__}); training starts over")
        return None
    return state


def save_weights(path: Path, module: nn.Module, metadata: dict[str, str]) -> None:
    """Write a module's state as safetensors, with `metadata` in its header.

    The metadata are written as one JSON text, since safetensors writes several entries in an order that varies. All
    processes must call this; process 0 writes.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in full_state(module.state_dict()).items()}
    header = {"imbalance_vlm": json.dumps(metadata, sort_keys=True)}
    if process_group().is_main:
        with _write_errors(path):
            write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def load_weights(path: Path, module: nn.Module, base: str | None = None) -> None:
    """Load what `save_weights` wrote.

    Args:
        path: the file.
        module: of the architecture that was saved.
        base: fingerprint of the encoder that the module is used with; None to skip the comparison.

    Raises:
        InputError: no such file, weights that are nan or infinite, weights of a module of another shape, or weights
            that were trained on another base model (with both fingerprints).
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}")
    if base is not None:
        check_trained_on(path, base)
    state = load_file(path)
    for name, value in state.items():
        # A module may keep -inf for classes that it never predicts.
        if value.is_floating_point() and bool((value.isnan() | value.isposinf()).any()):
            raise InputError(f"{path} must hold finite weights, got nan or inf in '{name}'; train again (--force)")
    try:
        load_module_state(module, state)
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of another head: {' '.join(str(error).split())[:300]}") from error


def check_trained_on(path: Path, base: str) -> None:
    """Refuse a weight file whose header names another base model than `base`; older files name none.

    Raises:
        InputError: with both fingerprints.
    """
    trained_on = read_safetensors_header(path).get("base") if path.is_file() else None
    if trained_on:
        check_base(path, trained_on, base)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Report a full disk, for which torch and safetensors raise their own errors in place of the system's."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        is_write_error = isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "unexpected pos" in text
        if not is_write_error:
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{path} cannot be written ({free / 1e6:.0f} MB are free there); free some space or choose another folder "
            f"({text[:120]})"
        ) from error
