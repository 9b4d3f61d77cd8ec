"""What an encoder is, and the two kinds of feature space it offers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from imbalance_vlm.data.loading import Transform
from imbalance_vlm.errors import InputError

KINDS = ("embedding", "class_token", "tokens")
"""Image features: "embedding" (B, d), in the space the text features share; "class_token" (B, w), after the tower's
final norm but before the projection; "tokens" (B, T, w), all tokens after the final norm, the class token first."""


class Encoder(Protocol):
    """A frozen or tuned image tower, with a text tower or without.

    `fingerprint` identifies the weights, `transform` turns an image into the (3, H, W) tensor the tower was trained
    on, `logit_scale` multiplies cosines (1 for towers without text).
    """

    name: str
    pretrained: str
    pretrain_pairs: int | None
    precision: str
    fingerprint: str
    transform: Transform
    final_norm: bool
    logit_scale: float
    module: nn.Module

    def width(self, kind: str) -> int: ...
    def image_features(self, pixels: Tensor, kind: str) -> Tensor: ...
    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor: ...
    def text_in(self, kind: str, text_features: Tensor) -> Tensor: ...


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            status = file.stat()
            digest.update(file.name.encode() + b"\0" + _content(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@cache
def _content(file: Path, size: int, changed: int) -> bytes:
    """SHA-256 of a file as it is at this size and time: a study asks again for every run."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state, for weights that come from no file."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_base(path: Path, trained_on: str, fingerprint: str) -> None:
    """Refuse weights that were trained on other weights than those of the encoder that is to use them.

    Args:
        path: the file, for the error.
        trained_on: the fingerprint that the file gives.
        fingerprint: the encoder's.

    Raises:
        InputError: they differ.
    """
    if trained_on != fingerprint:
        raise InputError(
            f"{path} was trained on another base model: it belongs to the encoder with fingerprint {trained_on}, and "
            f"the encoder's is {fingerprint}; put back the weights of the encoder that it was trained on, or train on "
            "these: run the recipe again"
        )


@contextmanager
def fixed_start() -> Iterator[None]:
    """Random weights are the same in every run, and making a model leaves torch's global generator where it was.

    The runs of a study share an encoder, so nothing that follows may depend on which of them made it.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)  # not torch.manual_seed, which moves the GPUs' generators too
    try:
        yield
    finally:
        torch.set_rng_state(state)


def autocast(device: torch.device, precision: str) -> Any:
    """bf16 autocast when the recipe asks for it, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
