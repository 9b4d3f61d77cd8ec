"""The interface of encoders and of their specifications, and what their implementations share."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.errors import InputError

KINDS = ("embedding", "class_token", "tokens")
"""Image features: "embedding" (B, d), in the space of the text features; "class_token" (B, w), after the tower's final
norm but before the projection; "tokens" (B, T, w), all tokens after the final norm, the class token first."""


class Encoder(Protocol):
    """An image tower, frozen or tuned, with a text tower or without.

    Attributes:
        name, pretrained: as in the recipe.
        pretrain_pairs: distinct image-text pairs of the pre-training, None if unknown.
        samples_seen: image-text pairs of the pre-training, every epoch counted, None if unknown.
        precision: "fp32", or "bf16" for autocast.
        fingerprint: identifies the weights.
        preprocessing: from images to the tensors that the tower was trained on.
        final_norm: whether tokens are taken after the tower's final norm.
        logit_scale: multiplies cosines; 1 without a text tower.
        module: the model.
    """

    name: str
    pretrained: str
    pretrain_pairs: int | None
    samples_seen: int | None
    precision: str
    fingerprint: str
    preprocessing: Preprocessing
    final_norm: bool
    logit_scale: float
    module: nn.Module

    def width(self, kind: str) -> int: ...
    def image_features(self, pixels: Tensor, kind: str) -> Tensor: ...
    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor: ...
    def text_in(self, kind: str, text_features: Tensor) -> Tensor: ...


@runtime_checkable
class EncoderSpec(Protocol):
    """An encoder as a recipe describes it, before it is loaded; usually a frozen dataclass.

    The constructor takes the model's `name` as its positional parameter; its keyword-only parameters are the settings
    of the recipe's `encoder` section.
    """

    def identity(self) -> str:
        """A string that changes whenever the weights change; every run computes it, so it must be cheap."""

    def build(self) -> Encoder:
        """Load the encoder."""


def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of all files in a folder with their names."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            status = file.stat()
            digest.update(os.fsencode(file.name) + b"\0" + _content_digest(file, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _content_digest(file: Path, size: int, modified_ns: int) -> bytes:
    """SHA-256 of a file's content.

    Kept for the process under path, size and modification time, so that a study hashes gigabytes of weights once and
    not for every run.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 of a module's state, for weights that do not come from a file."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_base(path: Path, trained_on: str, fingerprint: str) -> None:
    """Check that weights were trained on the encoder that is to use them.

    Args:
        path: the weights file, for the error.
        trained_on: the fingerprint recorded in the file.
        fingerprint: the encoder's.

    Raises:
        InputError: they differ.
    """
    if trained_on != fingerprint:
        raise InputError(
            f"{path} was trained on another base model: it belongs to the encoder with fingerprint {trained_on}, and "
            f"the encoder's is {fingerprint}; put back the weights of that encoder, or train on these by running the "
            "recipe again"
        )


@contextmanager
def fixed_seed() -> Iterator[None]:
    """Draw from a fixed seed inside this context, and leave torch's global generator unchanged.

    Random weights are then the same in every run. The runs of a study share an encoder, so no later draw may depend on
    which of them loaded it.
    """
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(0)  # not torch.manual_seed, which moves the GPUs' generators too
    try:
        yield
    finally:
        torch.set_rng_state(state)


def autocast(device: torch.device, precision: str) -> Any:
    """bf16 autocast if `precision` is "bf16", else a context that does nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
