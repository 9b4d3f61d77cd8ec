"""SubPT: training inside the subspace of the first epochs.

[0] Ma, Liu, Deng, Xie, Dong, Xu. Understanding and Mitigating Overfitting in Prompt Tuning for Vision-Language Models.
    TCSVT 2023.
[1] github.com/machengcheng2016/Subspace-Prompt-Learning, CoOp/compute_eigenvector.py, CoOp/trainers/coop_sub.py and
    model_subspace_backward_and_update in Dassl.pytorch/dassl/engine/trainer.py; (T, r) by shots: 1: (10, 5), 2: (20,
    10), 4: (30, 10), 8: (40, 10), 16: (50, 10); base-to-novel: 4 shots, T 30, r 10

    1. train, and keep the flattened prompt v_t after each of the first T epochs
    2. U (r, D): the first r right singular vectors of the rows v_t - mean v
    3. train again from the same start v0, every gradient g replaced by U^T U g
    and after each step   v <- v0 + U^T U (v - v0)

The last line keeps weight decay and momentum in the subspace. With SGD this equals training the coordinates a, where v
= v0 + U^T a, by the same optimizer, with the penalty |v|^2 / 2 of weight decay as a function of a; Adam's steps depend
on the coordinates, so for Adam only the subspace is kept.

Differs from [1] in: the last line, without which weight decay pulls the prompt out of the subspace; any prompt method,
and any trained parameters, flattened together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from imbalance_vlm.balancing.gradients.base import Gradient, Snapshot
from imbalance_vlm.balancing.regularizers.base import StepOutputs
from imbalance_vlm.components.ranges import Count, FinishedRun
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import expanded

FILES = "first_pass/epoch_*.safetensors"
"""The snapshots in the folder of a run."""

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest do not count towards the rank."""


def principal_directions(rows: Tensor, rank: int) -> Tensor:
    """Orthonormal directions of the largest variance, (T, D) -> (rank, D), in float64.

    Raises:
        InputError: the rows differ in fewer directions.
    """
    exact = rows.double()
    _, values, directions = torch.linalg.svd(exact - exact.mean(0), full_matrices=False)
    available = int((values > RANK_TOLERANCE * values[0]).sum())
    if available < rank:
        raise InputError(
            f"`rank` of gradient transform 'subspace' must be at most {available}, the number of directions in which "
            f"the {len(rows)} prompts of the first pass differ, got {rank}; lower it, or raise `keep`"
        )
    return directions[:rank]


class Subspace(Gradient):
    """Keeps the trained parameters, all together, in the subspace that the first epochs of a training span.

    It is not saved in checkpoints: a resumed run reads the files of its first pass again.

    Args:
        keep: number of epochs T of the first pass.
        rank: dimension r of the subspace.
        reuse: folder of a finished run with a first pass, whose files are used instead of a new one.

    Raises:
        InputError: a rank too high for the number of prompts, a folder without a first pass, or a first pass of other
            parameters.
    """

    basis: Tensor
    origin: Tensor

    def __init__(
        self, *, keep: Count = 30, rank: Count = 10, reuse: Annotated[Path | None, FinishedRun] = None
    ) -> None:
        super().__init__()
        if rank >= keep:
            raise InputError(
                f"`rank` of gradient transform 'subspace' must be less than `keep`, {keep}, since that many prompts "
                f"lie in {keep - 1} dimensions around their mean, got {rank}; lower it, or raise `keep`"
            )
        self.keep = keep
        self.rank = rank
        self.files = _first_pass(expanded(reuse, "`reuse`"), keep) if reuse else None
        self._snapshots: Sequence[Snapshot] = []
        self._trained: dict[str, nn.Parameter] = {}
        self.register_buffer("basis", torch.zeros(0), persistent=False)
        self.register_buffer("origin", torch.zeros(0), persistent=False)

    @property
    def first_epochs(self) -> int:
        return self.keep if self.files is None else 0

    def learn(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots

    @torch.no_grad()
    def start(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._trained = dict(parameters)
        snapshots = self._snapshots if self.files is None else [load_file(file) for file in self.files]
        rows = torch.stack([self._row(snapshot) for snapshot in snapshots])  # (T, D)
        self.origin = self._flattened(self._trained.values())
        self.basis = principal_directions(rows, self.rank).to(self.origin)

    def backward(self, loss: Tensor, outputs: StepOutputs) -> None:
        loss.backward()
        with torch.no_grad():
            grads = [torch.zeros_like(value) if value.grad is None else value.grad for value in self._trained.values()]
            parts = self._split(self._projected(self._flattened(grads)))
            for parameter, part in zip(self._trained.values(), parts, strict=True):
                parameter.grad = part.to(parameter)

    @torch.no_grad()
    def after_step(self) -> None:
        change = self._flattened(self._trained.values()) - self.origin
        parts = self._split(self.origin + self._projected(change))
        for parameter, part in zip(self._trained.values(), parts, strict=True):
            parameter.copy_(part)

    def _projected(self, flat: Tensor) -> Tensor:
        """U^T U x, (D,) -> (D,)."""
        return (self.basis @ flat) @ self.basis

    def _flattened(self, tensors: Iterable[Tensor]) -> Tensor:
        """(D,) the tensors as one vector, at least in float32."""
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
        return flat.to(torch.promote_types(flat.dtype, torch.float32))

    def _split(self, flat: Tensor) -> list[Tensor]:
        """A flat vector cut into the parameters' shapes."""
        sizes = [parameter.numel() for parameter in self._trained.values()]
        return [
            part.view_as(parameter) for part, parameter in zip(flat.split(sizes), self._trained.values(), strict=True)
        ]

    def _row(self, snapshot: Snapshot) -> Tensor:
        """A snapshot as one row, in the order of the parameters."""
        expected = {name: tuple(parameter.shape) for name, parameter in self._trained.items()}
        shapes = {name: tuple(value.shape) for name, value in snapshot.items()}
        if shapes != expected:
            raise InputError(
                "the first pass of gradient transform 'subspace' must be of the parameters that are trained, "
                f"{expected}, got {shapes}; reuse a run of the same tuning, classes and encoder"
            )
        return torch.cat([snapshot[name].flatten() for name in expected])


def _first_pass(folder: Path, keep: int) -> list[Path]:
    """The first `keep` snapshots in the folder of a run."""
    files = sorted(folder.glob(FILES))
    if len(files) < keep:
        raise InputError(
            f"`reuse` of gradient transform 'subspace' must be the folder of a run with a first pass of {keep} epochs, "
            f"got '{folder}' with {len(files)}; lower `keep`, or leave `reuse` out"
        )
    return files[:keep]
