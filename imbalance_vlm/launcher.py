"""What a launcher (torchrun, mpirun) tells the processes that it starts for one run, read from the environment."""

from __future__ import annotations

import os

VARIABLES = {
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK"),
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
}
"""Environment variables of torchrun and of Open MPI; the first that is set counts."""


def rank() -> int:
    """Number of this process among all of the run, from 0."""
    return _read("rank", 0)


def world_size() -> int:
    """Number of processes that were started for this run, on all machines."""
    return _read("world_size", 1)


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return _read("local_rank", 0)


def local_world_size() -> int:
    """Number of processes that were started for this run on this machine."""
    return _read("local_world_size", 1)


def _read(what: str, default: int) -> int:
    return int(next((value for name in VARIABLES[what] if (value := os.environ.get(name))), default))
