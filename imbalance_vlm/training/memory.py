"""Errors of memory that ran out, with what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imbalance_vlm.errors import InputError

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of shared memory",
    "killed by signal: Killed",  # a worker process that decodes images
)
"""Parts of the messages with which torch reports that memory ran out."""


@contextmanager
def memory_errors() -> Iterator[None]:
    """Report memory that ran out as one error that names the settings to change.

    Raises:
        InputError: memory ran out in the body.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())
        is_memory_error = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not is_memory_error and not any(words in text for words in OUT_OF_MEMORY):
            raise
        raise InputError(
            "memory ran out. For the same result with less memory, double training.accumulate (each step in smaller "
            "parts), lower the tuning's memory_gb or chunk where it has one, or set encoder.precision=bf16; if memory "
            "ran out after training, lower evaluation.batch_size. A smaller training.batch_size needs less memory too, "
            f"but changes the training ({text[:200] or type(error).__name__})"
        ) from error
