"""An image tower under tuning: the parameters that are added to it or selected in it, and how it is restored.

New modules become children of the block that they change, so that they move, save, shard and compile with it; hooks
call them. Names, values and order of the tower's own parameters do not change, and `TunedTower.remove` restores the
tower, so that the runs of a study can share one encoder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from imbalance_vlm.errors import InputError
from imbalance_vlm.tuning.peft.towers import Site, image_tower, read_contiguously

MARK = "_tuned_by"
"""Entry in the `__dict__` of a tower under tuning: the name of the method."""


def adaptive_width(num_classes: int, num_layers: int) -> int:
    """2^floor(log2(C / 2L)), at least 1: a bottleneck whose size follows the number of classes.

    >>> [adaptive_width(classes, 12) for classes in (100, 365, 1000, 8142)]
    [4, 8, 32, 256]
    """
    return 1 << max((num_classes // (2 * num_layers)).bit_length() - 1, 0)


class Added(nn.Module):
    """A module that hooks call inside a tower; it has no effect while `active` is false."""

    active = True


class WeightOverride(Added):
    """Computes the W and b that a site uses from those of the base, at each pass.

    During the pass the results are entries of the holder's `__dict__`, which Python looks up before parameters: they
    are computed once, the parameters keep their names, and the override also applies where a layer's weights are read
    without calling it, as in open_clip's attention.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight_paths, self.bias_paths = site.weights, site.biases

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W and b from those of the base."""
        raise NotImplementedError

    def computed(self, called: nn.Module) -> dict[str, Tensor]:
        """The weights by their paths from `called`, in full precision also under autocast."""
        site = Site("", called, self.weight_paths, self.bias_paths)
        weight, bias = site.base
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            new_weight, new_bias = self.weights(weight, bias)
        parts = _parts(site, self.weight_paths, new_weight)
        if new_bias is not None and new_bias is not bias:
            parts |= _parts(site, self.bias_paths, new_bias)
        return parts

    def apply_weights(self, called: nn.Module, args: Any) -> None:
        """A pre-hook of `called`: the computed weights replace the base's."""
        if self.active:
            for path, value in self.computed(called).items():
                _namespace(called, path)[path.rpartition(".")[2]] = value

    def restore(self, called: nn.Module, args: Any, output: Any) -> None:
        """A hook of `called`: the base's weights are used again."""
        for path in (*self.weight_paths, *self.bias_paths):
            _namespace(called, path).pop(path.rpartition(".")[2], None)


class TunedTower:
    """An image tower under tuning. `remove`, or leaving it as a context manager, restores the tower.

    Args:
        module: a model with an image tower, or an image tower; all of it is frozen.
        method: name of the method in recipes.

    Raises:
        InputError: a tower that is already under tuning.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self.root = image_tower(module)
        self.method = method
        if MARK in self.root.__dict__:
            raise InputError(
                f"the image tower is already under tuning by '{self.root.__dict__[MARK]}'; call remove() on that first"
            )
        self.root.__dict__[MARK] = method
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        self._modes = [(part, part.training) for part in self.root.modules()]
        self._handles = read_contiguously(self.root)
        self._places: list[tuple[nn.Module, str]] = []
        self.base_values: dict[str, Tensor] = {}  # of what is trained in place, and of the buffers of its modules
        module.requires_grad_(False)

    # -- for methods ---------------------------------------------------------------------------------------------------

    def add(self, place: nn.Module, name: str, module: nn.Module, like: nn.Module) -> None:
        """Make `module` a child of `place`, with the device and dtype of `like`."""
        reference = next(like.parameters())
        place.add_module(name, module.to(reference.device, reference.dtype))
        self._places.append((place, name))

    def hook(self, *handles: RemovableHandle) -> None:
        """Register hooks that `remove` removes."""
        self._handles += handles

    def reweight(
        self, place: nn.Module, name: str, make: Callable[[Site], WeightOverride], sites: Iterable[Site]
    ) -> None:
        """Give each site a module that computes its weights, as the child `place.name.<site>`."""
        overrides = [(site, make(site)) for site in sites]
        if not overrides:
            return
        modules = nn.ModuleDict({site.name: override for site, override in overrides})
        self.add(place, name, modules, like=overrides[0][0].called)
        for site, override in overrides:
            self.hook(
                site.called.register_forward_pre_hook(override.apply_weights),
                site.called.register_forward_hook(override.restore, always_call=True),  # also after a failed pass
            )

    def select(self, wanted: Callable[[str], bool], what: str) -> None:
        """Train the tower's own parameters whose name `wanted` accepts.

        Raises:
            InputError: no parameter is accepted; `what` names the missing parts.
        """
        selected = {name: parameter for name, parameter in self.root.named_parameters() if wanted(name)}
        if not selected:
            raise InputError(f"tuning method '{self.method}' needs {what}, and {type(self.root).__name__} has none")
        holders = {name.rpartition(".")[0] for name in selected}
        buffers = {key: value for key, value in self.root.named_buffers() if key.rpartition(".")[0] in holders}
        for name, value in (selected | buffers).items():
            self.base_values[name] = value.detach().clone()
        for parameter in selected.values():
            parameter.requires_grad_(True)

    # -- what is trained -----------------------------------------------------------------------------------------------

    @property
    def added(self) -> list[Added]:
        """The modules that were added."""
        children = (place.get_submodule(name) for place, name in self._places)
        return [module for child in children for module in child.modules() if isinstance(module, Added)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by their names in the image tower."""
        return {name: parameter for name, parameter in self.root.named_parameters() if parameter.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return list(self.named_parameters().values())

    def count(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters())

    def describe(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each trained parameter."""
        return [(name, tuple(parameter.shape)) for name, parameter in self.named_parameters().items()]

    def values(self) -> dict[str, Tensor]:
        """Everything that differs from the base, by name: trained parameters and the buffers that belong to them."""
        added = {id(buffer) for module in self.added for buffer in module.buffers()}
        buffers = {
            name: buffer
            for name, buffer in self.root.named_buffers()
            if id(buffer) in added or name in self.base_values
        }
        return self.named_parameters() | buffers

    def train(self, mode: bool = True) -> None:
        """Training mode for the modules that hold trained parameters, evaluation mode for all others: a frozen batch
        norm keeps its statistics, and a frozen dropout stays off."""
        self.root.eval()
        holders = {name.rpartition(".")[0] for name in self.named_parameters()}
        for name in holders:
            self.root.get_submodule(name).training = mode

    # -- the untouched tower -------------------------------------------------------------------------------------------

    @contextmanager
    def base(self) -> Iterator[None]:
        """Within this context manager the tower is untouched, without a second copy of the frozen part."""
        modes = [(module, module.training) for module in self.root.modules()]
        overridden = []
        for path, value in self.base_values.items():
            folder, _, name = path.rpartition(".")
            holder = self.root.get_submodule(folder)
            self.base_values[path] = value.to(getattr(holder, name).device)  # the tower may have moved
            holder.__dict__[name] = self.base_values[path]
            overridden.append((holder, name))
        added = self.added
        for module in added:
            module.active = False
        self.root.eval()
        try:
            yield
        finally:
            for module in added:
                module.active = True
            for holder, name in overridden:
                del holder.__dict__[name]
            for part, mode in modes:
                part.training = mode

    @torch.no_grad()
    def remove(self) -> None:
        """Restore the tower: hooks and modules are removed, values, flags and modes are as before. A second call does
        nothing."""
        for handle in self._handles:
            handle.remove()
        current = dict(self.root.named_parameters()) | dict(self.root.named_buffers())
        for name, value in self.base_values.items():
            if not hasattr(current[name], "full_tensor"):  # parameters sharded over processes are not restored
                current[name].copy_(value)
            current[name].grad = None
        for place, name in self._places:
            del place._modules[name]
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        for part, mode in self._modes:
            part.training = mode
        self._handles, self._places, self._flags, self._modes, self.base_values = [], [], [], [], {}
        self.root.__dict__.pop(MARK, None)

    def __enter__(self) -> TunedTower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class TowerMethod(ABC):
    """Base class of methods that tune an image tower; the settings of a subclass are keyword-only."""

    name: str

    def apply(self, module: nn.Module, num_classes: int) -> TunedTower:
        """Freeze a model and add this method to its image tower.

        Args:
            module: an encoder's module, or an image tower.
            num_classes: C, on which the sizes of some methods depend.

        Raises:
            InputError: a tower without the parts that the method needs (it is not changed), or already under tuning.
        """
        tuned = TunedTower(module, self.name)
        try:
            self.inject(tuned, num_classes)
        except BaseException:
            tuned.remove()
            raise
        return tuned

    @abstractmethod
    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        """Add trained modules to the tower, or select parameters in it."""


def _namespace(module: nn.Module, path: str) -> dict[str, Any]:
    """The `__dict__` of the module that holds `path`, which Python looks up before its parameters."""
    return module.get_submodule(path.rpartition(".")[0]).__dict__


def _parts(site: Site, paths: tuple[str, ...], value: Tensor) -> dict[str, Tensor]:
    """W or b of a site by path, split as in the tower."""
    if len(paths) == 1:
        return {paths[0]: value}
    return dict(zip(paths, value.split(site.rows(len(paths))), strict=True))
