"""One training over several processes, each with a device of its own: the same numbers as one process gives.

Batch, rate and order of the data are the recipe's. Of every batch, each of P processes runs the head (and the tower in
it) on its own part; then embeddings and logits are gathered, and every process computes the loss and the regularizers
of the WHOLE batch. So nothing that looks at a batch as a whole (a queue of past samples, contrast within a batch, sums
of class weights, running means) is an approximation, and what such parts remember is the same everywhere.

    z = gather(f(x_p)),   backward: dL/dz_p times P;   g = 1/P sum_p g_p

A parameter before the gathering gets P times its own share from each process, and one behind it the whole gradient
from each: the mean is right for both, whatever a parameter is used for.

Not the same as in one process: dropout, whose draws are each process's own, and batch norm in training mode, whose
statistics are those of a part of the batch.

torch.distributed does the work; accelerate starts it, where torchrun, SLURM or MPI have made the processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from imbalance_vlm.errors import InputError

BUCKET = 2**23
"""Numbers of a gradient that travel together."""
FEW_CONVOLUTIONS = 4
"""As many as a transformer may have to cut an image into patches."""


# -- processes -------------------------------------------------------------------------------------------------------


def named(name: str) -> torch.device:
    """The device that a user means: "auto" is a GPU where there is one.

    Raises:
        InputError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"`device` must be auto, cpu or a GPU of this machine such as cuda, got {name!r}: {reason}"
        ) from error
    return device


def launched() -> int:
    """How many processes were started for this run: 1, or what torchrun or its like say."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def start(name: str = "auto") -> torch.device | None:
    """Join the other processes of this run, once; the device of this one, or None for a process that is alone.

    Args:
        name: "auto" (a GPU for each process where there are any) or "cpu".

    Raises:
        InputError: several processes without accelerate, or a single device asked for by name.
    """
    if launched() == 1 and not distributed.is_initialized():
        return None
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"`device` must be auto, cuda or cpu for {launched()} processes, each of which has its own, got {name!r}"
        )
    try:
        from accelerate import PartialState  # a slow import
    except ImportError as error:
        raise InputError(
            f"{launched()} processes need accelerate: pip install 'imbalance_vlm[devices]', or start one"
        ) from error
    device: torch.device = PartialState(cpu=name == "cpu").device
    return device if device.type == "cuda" else torch.device(device.type)


@dataclass
class Devices:
    """The processes that train together: this is number `rank` of `size`."""

    rank: int = 0
    size: int = 1
    random: LocalRandom | None = field(default=None, repr=False)

    @property
    def main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def part(self, rows: Tensor) -> Tensor:
        """This process's rows of a batch; one row, of which nothing is used, where there are fewer rows than
        processes."""
        if self.size == 1:
            return rows
        own = rows.tensor_split(self.size)[self.rank]
        return own if len(own) else rows[:1]

    def gather(self, own: Tensor, count: int) -> Tensor:
        """(B, ...) of a batch of `count`, from what each process has for its part; with gradient."""
        if self.size == 1:
            return own
        sizes = [len(part) for part in torch.empty(count, device="meta").tensor_split(self.size)]
        gathered: Tensor = _Gather.apply(own[: sizes[self.rank]], sizes, self.rank)
        return gathered

    @contextmanager
    def own_part(self) -> Iterator[None]:
        """Random numbers drawn in here are this process's own; all others are the same in every process."""
        if self.random is None:
            yield
            return
        with self.random.use():
            yield

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their means over the processes. (Those of sharded parameters are means already.)"""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            distributed.all_reduce(flat)
            flat /= self.size
            pieces = flat.split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def same(self, value: Any) -> Any:
        """What process 0 has, in every process; any plain value."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def collect(self, value: Any) -> list[Any]:
        """What each process has, in every process."""
        if self.size == 1:
            return [value]
        boxes: list[Any] = [None] * self.size
        distributed.all_gather_object(boxes, value)
        return boxes


def current() -> Devices:
    """The processes that this one has joined."""
    if distributed.is_available() and distributed.is_initialized():
        return Devices(distributed.get_rank(), distributed.get_world_size())
    return Devices()


class _Gather(torch.autograd.Function):
    """All parts of a batch, one behind the other; of unequal length, as the last batch of an epoch may have them."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: Sequence[int], rank: int) -> Tensor:
        ctx.begin, ctx.count, ctx.size = sum(sizes[:rank]), sizes[rank], len(sizes)
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.begin : ctx.begin + ctx.count] * ctx.size, None, None


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one kind and device, some millions of numbers together."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        bucket = kinds.setdefault((tensor.dtype, tensor.device), [])
        bucket.append(tensor)
        if sum(member.numel() for member in bucket) >= BUCKET:
            yield kinds.pop((tensor.dtype, tensor.device))
    yield from kinds.values()


# -- random numbers --------------------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """Every generator that a step may draw from, as tensors and plain values."""
    import random

    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    import random

    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


class LocalRandom:
    """A stream of torch's random numbers that belongs to one process, beside the stream that all share.

    Losses that draw at random must draw alike in every process, dropout must not: each process has another part of the
    batch.
    """

    def __init__(self, rank: int) -> None:
        mixed = np.random.SeedSequence([torch.initial_seed() % 2**63, rank + 1]).generate_state(1)[0]
        shared = self._get()
        torch.manual_seed(int(mixed))
        self.state = self._get()
        self._set(shared)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Draw from this stream for as long as this lasts."""
        shared = self._get()
        self._set(self.state)
        try:
            yield
        finally:
            self.state = self._get()
            self._set(shared)

    def _get(self) -> tuple[Tensor, Tensor | None]:
        return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def _set(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1])


def generator_states(module: nn.Module) -> dict[str, tuple[str, Tensor]]:
    """Device and state of the generators that a module's parts keep, by path: losses that draw have their own."""
    return {
        f"{path}:{key}": (str(value.device), value.get_state())
        for path, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, torch.Generator)
    }


def set_generator_states(module: nn.Module, states: dict[str, tuple[str, Tensor]]) -> None:
    """Put back what `generator_states` gave."""
    for place, (device, state) in states.items():
        path, _, key = place.partition(":")
        generator = torch.Generator(device)
        generator.set_state(state)
        setattr(module.get_submodule(path), key, generator)


# -- towers in parts -------------------------------------------------------------------------------------------------


def shard(tower: nn.Module, *others: nn.Module) -> None:
    """Spread a tower's parameters over the processes; each of its layers is put together while it is needed.

    For a tower that does not fit one device. Call it in every process, behind `start` and before the optimizer is
    made: the parameters are others afterwards. In one process nothing happens.

    Args:
        tower: its forward pass begins with a call of itself or of `forward_intermediates`.
        others: modules that hold some of its parameters under another name, such as a head; they get the new ones.

    Raises:
        InputError: a tower without layers to spread.
    """
    if current().size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = _layers(tower)
    if not layers:
        raise InputError(f"{type(tower).__name__} has no list of layers to spread over the processes; do not shard it")
    tower.to(memory_format=torch.contiguous_format)
    before = {id(value): name for name, value in tower.named_parameters()}
    mesh = init_device_mesh(next(tower.parameters()).device.type, (current().size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(tower, mesh=mesh)
    if hasattr(tower, "forward_intermediates"):
        register_fsdp_forward_method(tower, "forward_intermediates")
    after = dict(tower.named_parameters())
    for module in others:
        for part in module.modules():
            for key, value in part._parameters.items():
                if id(value) in before:
                    part._parameters[key] = after[before[id(value)]]


def _layers(tower: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that hold parameters: blocks or stages."""
    found: list[nn.Module] = []
    for child in tower.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            found += [layer for layer in child if next(layer.parameters(), None) is not None]
        else:
            found += _layers(child)
    return found


def is_sharded(value: object) -> bool:
    """Whether a tensor lies in parts on several processes."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def whole(value: Any) -> Any:
    """A state with every sharded tensor put together, which all processes must ask for at once."""
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item) for item in value)
    return value.full_tensor() if is_sharded(value) else value


def load_whole(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`load_state_dict` of a state without parts into a module that may have some."""
    own = module.state_dict()
    module.load_state_dict({key: like(value, own[key]) if key in own else value for key, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of a state without parts into an optimizer whose parameters may have some.

    Which of torch's kernels take its steps stays as it is: the state may come from another kind of device.
    """
    own = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups]
    groups = [group | kernels for group, kernels in zip(state["param_groups"], own, strict=True)]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            kept = optimizer.state[parameter]
            for key, value in kept.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    kept[key] = like(value, parameter)


def like(value: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, spread over the processes as `other` is."""
    if not is_sharded(other) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    spread: Any = other
    return distribute_tensor(value.to(spread.device), spread.device_mesh, spread.placements)


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> None:
    """`clip_grad_norm_`, also where some of the parameters are sharded and others are not."""
    gradients: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    every = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in every:
        gradients[is_sharded(parameter)].append(parameter)
    if not gradients[True]:
        nn.utils.clip_grad_norm_(every, largest)
        return
    norms = [
        whole(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None]))
        for part in gradients.values()
        if part
    ]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for part in gradients.values():
        nn.utils.clip_grads_with_norm_(part, largest, total)


# -- speed -----------------------------------------------------------------------------------------------------------


def fast_layout(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on a device; on a GPU a convolutional net has its weights in the order its kernels are fastest in
    (channels last), which changes no more than rounding. A transformer's one convolution is left alone.
    """
    module = module.to(device)
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    if device.type == "cuda" and len(convolutions) > FEW_CONVOLUTIONS:
        for part in convolutions:
            part.to(memory_format=torch.channels_last)
    return module


# -- memory ----------------------------------------------------------------------------------------------------------

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "out of shared memory",
    "killed by signal: Killed",  # of a process that decodes images
)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns memory that ran out into one error that says which settings take less of it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = " ".join(str(error).split())
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not any(words in text for words in OUT_OF_MEMORY):
            raise
        raise InputError(
            "memory ran out. For the same result with less of it: double training.accumulate (a "
            "step in smaller parts), set the tuning's memory_gb or chunk lower where it has one, or "
            "encoder.precision=bf16; where it ran out behind training, lower evaluation.batch_size. A smaller "
            "training.batch_size needs less too, and is another training "
            f"({text[:200] or type(error).__name__})"
        ) from error
