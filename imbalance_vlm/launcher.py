"""The processes of a run that a launcher (torchrun, mpirun) started, read from the environment."""

from __future__ import annotations

import os

VARIABLES = {
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK"),
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}
"""Environment variables of torchrun and of Open MPI; the first one that is set is used."""


def rank() -> int:
    """Rank of this process among all processes of the run, from 0."""
    return _read("rank", 0)


def world_size() -> int:
    """Number of processes of this run, on all machines."""
    return _read("world_size", 1)


def local_rank() -> int:
    """Rank of this process among those of its machine, from 0."""
    return _read("local_rank", 0)


def local_world_size() -> int:
    """Number of processes of this run on this machine."""
    return _read("local_world_size", 1)


def launched_by_torchrun() -> bool:
    """Whether torchrun has started this process: it then waits for it, and is its parent."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _read(name: str, default: int) -> int:
    return int(next((value for variable in VARIABLES[name] if (value := os.environ.get(variable))), default))
