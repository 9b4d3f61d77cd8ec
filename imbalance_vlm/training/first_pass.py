"""A first training that a gradient transform learns from: the trained parameters after each epoch, in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from imbalance_vlm.balancing.gradients.base import PlainGradient, Snapshot
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.encoders.sources import Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically
from imbalance_vlm.training.checkpoints import CHECKPOINT_FILE, HISTORY_FILE
from imbalance_vlm.training.distributed.processes import process_group
from imbalance_vlm.training.loop import train
from imbalance_vlm.training.schedules import Schedule
from imbalance_vlm.training.settings import TrainingSettings

FOLDER = "first_pass"

MakeTraining = Callable[[Objective], tuple[Source, Sampler, torch.optim.Optimizer, Schedule]]
"""Makes the source, sampler, optimizer and schedule that an objective is trained with."""


def first_pass(
    objective: Objective, epochs: int, folder: Path, make: MakeTraining, settings: TrainingSettings
) -> list[Snapshot]:
    """Train the objective with its plain gradient for the first epochs of the run's own plan, then restore it.

    Args:
        objective: unchanged at the end.
        epochs: number of epochs to train, after each of which the parameters are saved.
        folder: of the run; `folder/first_pass` takes one file per epoch, which another run may reuse.
        make: the run's own source, sampler, optimizer and schedule.
        settings: of the training loop.

    Returns:
        The trained parameters by name, after each epoch.

    Raises:
        InputError: more epochs than the run trains for.
    """
    if epochs > settings.epochs:
        raise InputError(
            f"`balancing.gradient` keeps the first {epochs} epochs of a training of {settings.epochs}; "
            "set training.epochs to at least as many, or keep fewer"
        )
    snapshots = folder / FOLDER
    snapshots.mkdir(parents=True, exist_ok=True)
    start = {key: value.detach().clone() for key, value in objective.state_dict().items()}
    transform, objective.gradient = objective.gradient, PlainGradient()

    def save_snapshot(epoch: int) -> dict[str, float]:
        parameters = trained_parameters(objective)
        write_atomically(snapshots / f"epoch_{epoch:03d}.safetensors", lambda path: save_file(parameters, path))
        return {}

    if process_group().broadcast(not _is_complete(folder, epochs)):
        source, sampler, optimizer, schedule = make(objective)
        train(objective, source, sampler, optimizer, schedule, snapshots, save_snapshot, epochs, settings=settings)
    (snapshots / CHECKPOINT_FILE).unlink(missing_ok=True)  # also of a run that was killed after the last epoch
    objective.gradient = transform
    objective.load_state_dict(start)
    files = snapshot_files(folder)[:epochs]
    loaded: list[Snapshot] = process_group().broadcast([load_file(path) for path in files])
    return loaded


def _is_complete(folder: Path, epochs: int) -> bool:
    """Whether a first pass has ended: the lines of its last epochs are written after all its snapshots."""
    history = folder / FOLDER / HISTORY_FILE
    lines = len(history.read_text(encoding="utf-8").splitlines()) if history.is_file() else 0
    return min(lines, len(snapshot_files(folder))) >= epochs


def snapshot_files(folder: Path) -> list[Path]:
    """The files of a run's first pass, in the order of the epochs."""
    return sorted((folder / FOLDER).glob("epoch_*.safetensors"))


def trained_parameters(objective: Objective) -> dict[str, Tensor]:
    """Copies of the head's trained parameters on the CPU, by name."""
    parameters = objective.head.named_parameters()
    return {name: value.detach().cpu().clone() for name, value in parameters if value.requires_grad}
