"""Checkpoints of a run under way, and the trained weights it leaves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from imbalance_vlm.encoders.base import check_base
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically
from imbalance_vlm.progress import note
from imbalance_vlm.training.devices import current, load_whole, whole

State = dict[str, Any]


def save_checkpoint(path: Path, state: State) -> None:
    """Write a training state in one step: a kill, or a disk that is full, leaves the old file or the new one.

    Raises:
        InputError: what cannot be written, and why.
    """
    with _write_errors(path):
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

    The metadata are one JSON text: safetensors writes several entries in an order that changes from file to file. Of
    several processes all must call this, and process 0 writes.

    Raises:
        InputError: what cannot be written, and why.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in whole(module.state_dict()).items()}
    header = {"imbalance_vlm": json.dumps(metadata, sort_keys=True)}
    if current().main:
        with _write_errors(path):
            write_atomically(path, lambda temporary: save_file(tensors, temporary, header))


def load_weights(path: Path, module: nn.Module, base: str | None = None) -> None:
    """Load what `save_weights` wrote.

    Args:
        path: the file.
        module: like the one that was saved.
        base: fingerprint of the encoder that the module is used with; None where there is none to compare with.

    Raises:
        InputError: no such file, weights of a module of another shape, or weights that were trained on another base
            model (with both fingerprints).
    """
    if not path.is_file():
        raise InputError(f"no weights at {path}")
    if base is not None:
        check_trained_on(path, base)
    try:
        load_whole(module, load_file(path))
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of another head: {' '.join(str(error).split())[:300]}") from error


def check_trained_on(path: Path, base: str) -> None:
    """Refuse a weight file whose header names another base model than `base`; one that names none may be any.

    Raises:
        InputError: with both fingerprints.
    """
    if not path.is_file():
        return
    try:
        with safe_open(path, framework="pt") as file:
            entries = json.loads((file.metadata() or {}).get("imbalance_vlm", "{}"))
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file or a damaged one: {error}") from error
    if entries.get("base"):
        check_base(path, entries["base"], base)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """A full disk as torch and safetensors report it: with errors of their own in place of the system's."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        text = " ".join(str(error).split())
        of_writing = isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "unexpected pos" in text
        if not of_writing:
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(
            f"{path} cannot be written ({free / 1e6:.0f} MB are free there); free some space or choose another folder "
            f"({text[:120]})"
        ) from error
