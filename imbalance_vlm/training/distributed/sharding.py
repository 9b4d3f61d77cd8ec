"""A tower whose parameters are sharded over the processes (torch's FSDP), and its states as full tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from imbalance_vlm.errors import InputError
from imbalance_vlm.training.distributed.processes import process_group


def shard_tower(tower: nn.Module, *holders: nn.Module) -> None:
    """Shard a tower's parameters over the processes; each layer is gathered while it is needed.

    For a tower too large for one device. Call it in every process, after `join` and before the optimizer is made,
    since it replaces the parameters. In one process nothing happens.

    Args:
        tower: its forward pass begins with a call of itself or of `forward_intermediates`.
        holders: modules that hold some of its parameters under other names, such as a head; they get the new ones.

    Raises:
        InputError: a tower without a list of layers.
    """
    group = process_group()
    if group.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    layers = _layers(tower)
    if not layers:
        raise InputError(
            f"`tower` must have a list of layers to shard over the processes, got {type(tower).__name__}; "
            "set training.shard to false"
        )
    tower.to(memory_format=torch.contiguous_format)
    names = {id(value): name for name, value in tower.named_parameters()}
    mesh = init_device_mesh(next(tower.parameters()).device.type, (group.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(tower, mesh=mesh)
    if hasattr(tower, "forward_intermediates"):
        register_fsdp_forward_method(tower, "forward_intermediates")
    sharded = dict(tower.named_parameters())
    for holder in holders:
        for module in holder.modules():
            for key, value in module._parameters.items():
                if id(value) in names:
                    module._parameters[key] = sharded[names[id(value)]]


def _layers(tower: nn.Module) -> list[nn.Module]:
    """The members of the outermost lists of modules that hold parameters: blocks or stages."""
    layers: list[nn.Module] = []
    for child in tower.children():
        if isinstance(child, (nn.ModuleList, nn.Sequential)):
            layers += [layer for layer in child if next(layer.parameters(), None) is not None]
        else:
            layers += _layers(child)
    return layers


def is_sharded(value: object) -> bool:
    """Whether a tensor is sharded over several processes."""
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def full_tensor(value: Tensor) -> Tensor:
    """The full tensor; for a sharded one, all processes must call this together."""
    if not is_sharded(value):
        return value
    sharded: Any = value
    gathered: Tensor = sharded.full_tensor()
    return gathered


def full_state(state: Any) -> Any:
    """A state (dictionaries, lists, tensors, plain values) with every sharded tensor as a full one."""
    if isinstance(state, dict):
        return {key: full_state(item) for key, item in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(full_state(item) for item in state)
    return full_tensor(state) if isinstance(state, Tensor) else state


def shard_like(value: Tensor, reference: Tensor) -> Tensor:
    """A full tensor, sharded as `reference` is; unchanged where that is not sharded."""
    if not is_sharded(reference) or is_sharded(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = reference
    return distribute_tensor(value.to(sharded.device), sharded.device_mesh, sharded.placements)


def load_module_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """`module.load_state_dict` of full tensors, also where some parameters of the module are sharded."""
    current = module.state_dict()
    module.load_state_dict(
        {key: shard_like(value, current[key]) if key in current else value for key, value in state.items()}
    )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`optimizer.load_state_dict` of full tensors, also where some of its parameters are sharded.

    The choice of torch's kernels is kept, since the state may come from another kind of device.
    """
    kernels = [{key: group[key] for key in ("fused", "foreach") if key in group} for group in optimizer.param_groups]
    groups = [group | chosen for group, chosen in zip(state["param_groups"], kernels, strict=True)]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            moments = optimizer.state[parameter]
            for key, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                    moments[key] = shard_like(value, parameter)


def clip_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> None:
    """`torch.nn.utils.clip_grad_norm_`, also where some parameters are sharded and others are not."""
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [parameter for parameter in with_gradient if is_sharded(parameter)]
    if not sharded:
        nn.utils.clip_grad_norm_(with_gradient, max_norm)
        return
    kinds = [sharded, [parameter for parameter in with_gradient if not is_sharded(parameter)]]
    norms = [
        full_tensor(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind
    ]
    total = torch.linalg.vector_norm(torch.stack(norms))
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, max_norm, total)
