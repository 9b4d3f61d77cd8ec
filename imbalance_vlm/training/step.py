"""One step of the optimizer: forward and backward of each part of a batch, over all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor

from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.progress import note
from imbalance_vlm.training.distributed.collectives import average_gradients, gather_rows, local_rows
from imbalance_vlm.training.distributed.processes import ProcessGroup
from imbalance_vlm.training.distributed.random_state import LocalRandom
from imbalance_vlm.training.distributed.sharding import clip_gradient, is_sharded


class TrainingStep:
    """Takes one step of the optimizer when it is called with a batch.

    A gradient transform that is not linear needs the gradient of the whole batch: with one, every process computes
    every batch, which is exact but no faster.

    Args:
        objective: gives the loss.
        optimizer: takes the step.
        group: the processes that train together.
        clip_grad_norm: largest norm of the gradient; None does not clip.
        compile: whether the head runs through torch.compile.

    Attributes:
        local_random: this process's random numbers, for what is drawn per sample (dropout); None where every process
            computes whole batches.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        group: ProcessGroup,
        *,
        clip_grad_norm: float | None = None,
        compile: bool = False,
    ) -> None:
        self.objective = objective
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        splits = group.size > 1 and objective.gradient.is_linear
        self.group = group if splits else ProcessGroup()
        self.local_random = LocalRandom(group.rank) if splits else None
        self.outputs = _Compiled(objective.outputs) if compile else objective.outputs
        self.plain = not splits and not compile
        self.parameters = [parameter for param_group in optimizer.param_groups for parameter in param_group["params"]]
        if any(map(is_sharded, self.parameters)):
            for param_group in optimizer.param_groups:  # foreach kernels cannot mix sharded and full tensors
                param_group["foreach"] = False

    def local_rows(self, rows: Tensor) -> Tensor:
        """The rows of a part of a batch that this process computes."""
        return local_rows(rows, self.group)

    def __call__(self, parts: list[Tensor], batches: Iterator[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Take one step.

        Args:
            parts: the rows of each part of the batch, over all processes.
            batches: features and targets of this process's rows, part by part.

        Returns:
            The loss of each part, on the device; this does not wait for it.
        """
        objective, size = self.objective, sum(map(len, parts))
        self.optimizer.zero_grad(set_to_none=True)
        losses = []
        for rows, (features, targets) in zip(parts, batches, strict=False):
            loss = objective(features, targets) if self.plain else self._loss(features, targets, len(rows))
            objective.backward(loss if len(parts) == 1 else loss * (len(rows) / size))
            losses.append(loss.detach().float())
        average_gradients(self.parameters, self.group)
        if self.clip_grad_norm is not None:
            clip_gradient(objective.head.parameters(), self.clip_grad_norm)
        self.optimizer.step()
        objective.gradient.after_step()
        return losses

    def _loss(self, features: Tensor, targets: Tensor, count: int) -> Tensor:
        """The loss of a part of a batch of `count` samples, of which this process has some."""
        with self.local_random.use() if self.local_random is not None else nullcontext():
            embeddings, logits = self.outputs(features)

        def gather(local: Tensor) -> Tensor:
            return gather_rows(local, count, self.group)

        gathered = [gather(local) for local in (embeddings, logits, targets)]
        self.objective.gather(gather)
        return self.objective.value(*gathered)


class _Compiled:
    """A function through torch.compile; the plain function from the first failure on."""

    def __init__(self, plain: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        self.plain = plain
        self.compiled: Callable[[Tensor], tuple[Tensor, Tensor]] | None = torch.compile(plain)

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        from torch._dynamo.exc import TorchDynamoException

        if self.compiled is not None:
            try:
                return self.compiled(features)
            except TorchDynamoException as error:
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                note(f"training.compile: continuing without torch.compile, {type(error).__name__}: {reason}")
                self.compiled = None
        return self.plain(features)
