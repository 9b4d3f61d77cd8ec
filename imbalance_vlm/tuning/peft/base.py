"""A tower under tuning: what was added to it or chosen in it, and the way back.

New modules become children of the block they serve, so that they move, save, shard and compile with it; hooks bring
them in. Names, values and order of the tower's own parameters stay as they are, `Tuned.remove` leaves nothing behind,
and the runs of a study can share one encoder.
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
from imbalance_vlm.tuning.peft.towers import Site, image_tower

MARK = "_tuned_by"


def adaptive_width(num_classes: int, num_layers: int) -> int:
    """2^floor(log2(C / 2L)), at least 1: a bottleneck whose size follows that of the task.

    >>> [adaptive_width(classes, 12) for classes in (100, 365, 1000, 8142)]
    [4, 8, 32, 256]
    """
    return 1 << max((num_classes // (2 * num_layers)).bit_length() - 1, 0)


class Added(nn.Module):
    """A module that hooks bring into a tower; `active` turns it off without taking it out."""

    active = True


class Reweighted(Added):
    """Makes the W and b that a site uses from those of the base, anew at each pass.

    They stand before the base's own in the holder's namespace while the pass lasts: computed once, the base's own names
    untouched, and also where a layer's weights are read without calling it, as open_clip's attention does.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.weight_paths, self.bias_paths = site.weights, site.biases

    def weights(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W and b from the base's."""
        raise NotImplementedError

    def computed(self, called: nn.Module) -> dict[str, Tensor]:
        """The weights by their paths from `called`, in full precision whatever autocast says."""
        site = Site("", called, self.weight_paths, self.bias_paths)
        weight, bias = site.base
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            new_weight, new_bias = self.weights(weight, bias)
        found = _parts(site, self.weight_paths, new_weight)
        if new_bias is None or new_bias is bias:
            return found
        return found | _parts(site, self.bias_paths, new_bias)

    def put(self, called: nn.Module, args: Any) -> None:
        if self.active:
            for path, value in self.computed(called).items():
                _before(called, path)[path.rpartition(".")[2]] = value

    def take(self, called: nn.Module, args: Any, output: Any) -> None:
        for path in (*self.weight_paths, *self.bias_paths):
            _before(called, path).pop(path.rpartition(".")[2], None)


class Tuned:
    """A tower under tuning. `remove`, or leaving it as a context manager, gives back the tower as it was.

    Args:
        module: a model with an image tower, or an image tower; all of it is frozen.
        method: its recipe name.
    """

    def __init__(self, module: nn.Module, method: str) -> None:
        self.root = image_tower(module)
        self.method = method
        if MARK in self.root.__dict__:
            raise InputError(
                f"the image tower is under tuning by '{self.root.__dict__[MARK]}' already; call remove() on that first"
            )
        self.root.__dict__[MARK] = method
        self._flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
        self._handles: list[RemovableHandle] = []
        self._places: list[tuple[nn.Module, str]] = []
        self._reweighted: list[tuple[Site, Reweighted]] = []
        self.base_values: dict[str, Tensor] = {}  # of what is trained in place, and of the buffers beside it
        module.requires_grad_(False)

    # -- what methods do to it -----------------------------------------------------------------------------------------

    def add(self, place: nn.Module, name: str, module: nn.Module, like: nn.Module) -> None:
        """Make `module` a child of `place`, with the device and dtype of `like`."""
        own = next(like.parameters())
        place.add_module(name, module.to(own.device, own.dtype))
        self._places.append((place, name))

    def hook(self, *handles: RemovableHandle) -> None:
        self._handles += handles

    def reweight(self, place: nn.Module, name: str, make: Callable[[Site], Reweighted], sites: Iterable[Site]) -> None:
        """Give each site a module of its own that computes its weights; they become `place.name.<site>`."""
        made = [(site, make(site)) for site in sites]
        if not made:
            return
        self.add(place, name, nn.ModuleDict({site.name: module for site, module in made}), like=made[0][0].called)
        for site, module in made:
            self._reweighted.append((site, module))
            self.hook(
                site.called.register_forward_pre_hook(module.put),
                site.called.register_forward_hook(module.take, always_call=True),  # a failed pass leaves nothing
            )

    def select(self, wanted: Callable[[str], bool], what: str) -> None:
        """Train the tower's own parameters whose name `wanted` accepts.

        Raises:
            InputError: none is accepted; `what` says what was looked for.
        """
        chosen = {name: parameter for name, parameter in self.root.named_parameters() if wanted(name)}
        if not chosen:
            raise InputError(f"tuning method '{self.method}' needs {what}, {type(self.root).__name__} has none")
        holders = {name.rpartition(".")[0] for name in chosen}
        beside = {key: value for key, value in self.root.named_buffers() if key.rpartition(".")[0] in holders}
        for name, value in (chosen | beside).items():
            self.base_values[name] = value.detach().clone()
        for parameter in chosen.values():
            parameter.requires_grad_(True)

    # -- what is trained -----------------------------------------------------------------------------------------------

    @property
    def added(self) -> list[Added]:
        tops = (place.get_submodule(name) for place, name in self._places)
        return [module for top in tops for module in top.modules() if isinstance(module, Added)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by their names in the image tower."""
        return {name: parameter for name, parameter in self.root.named_parameters() if parameter.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.named_parameters().values())

    def count(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())

    def describe(self) -> list[tuple[str, tuple[int, ...]]]:
        """Name and shape of each trained parameter."""
        return [(name, tuple(parameter.shape)) for name, parameter in self.named_parameters().items()]

    def train(self, mode: bool = True) -> None:
        """Training mode for the modules that hold something trained, evaluation mode for all others: a frozen batch
        norm keeps its statistics, and a frozen dropout stays off."""
        self.root.eval()
        holders = {name.rpartition(".")[0] for name in self.named_parameters()}
        for name in holders:
            self.root.get_submodule(name).training = mode

    # -- values --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """All that differs from the base, and nothing else: trained parameters and the buffers that go with them."""
        return {name: value.detach().clone() for name, value in self._values().items()}

    def _values(self) -> dict[str, Tensor]:
        theirs = {id(buffer) for module in self.added for buffer in module.buffers()}
        buffers = {
            name: buffer
            for name, buffer in self.root.named_buffers()
            if id(buffer) in theirs or name in self.base_values
        }
        return self.named_parameters() | buffers

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            InputError: a state of another method, setting or tower.
        """
        own = self._values()
        wrong = sorted(own.keys() ^ state.keys()) or [
            name for name, value in own.items() if value.shape != state[name].shape
        ]
        if wrong:
            expected, got = (_shape_of(values, wrong[0]) for values in (own, state))
            raise InputError(
                f"trained weights of another method, setting or tower: expected {expected} for {wrong[0]}, got {got} "
                f"({len(wrong)} such); load them with the recipe they were trained with"
            )
        for name, value in own.items():
            value.copy_(state[name])

    def merged_state(self) -> dict[str, Tensor]:
        """The state of a plain tower that does the same.

        Raises:
            InputError: a method that is more than other weights, or a shift where the tower has no bias.
        """
        prefixes = {id(module): name for name, module in self.root.named_modules()}
        new: dict[str, Tensor] = {}
        for site, reweighted in self._reweighted:
            for own, value in reweighted.computed(site.called).items():
                new[f"{prefixes[id(site.called)]}.{own}".lstrip(".")] = value
        inside = tuple(f"{prefixes[id(place)]}.{name}.".lstrip(".") for place, name in self._places)
        plain = {name: value for name, value in self.root.state_dict().items() if not name.startswith(inside)}
        missing = [name for name in new if name not in plain]
        if missing or len(self.added) > len(self._reweighted):
            why = f"the tower has no {missing[0]}" if missing else f"'{self.method}' adds layers to the tower"
            raise InputError(f"what was trained cannot be merged into the tower's own weights: {why}; save it beside")
        return {name: value.detach().clone() for name, value in (plain | new).items()}

    @contextmanager
    def base(self) -> Iterator[None]:
        """The untouched tower for as long as this lasts, to compare with: no second copy of the frozen part."""
        modes = [(module, module.training) for module in self.root.modules()]
        shadows = []
        for name, value in self.base_values.items():
            path, _, own = name.rpartition(".")
            holder = self.root.get_submodule(path)
            self.base_values[name] = value.to(getattr(holder, own).device)  # the tower may have moved
            holder.__dict__[own] = self.base_values[name]
            shadows.append((holder, own))
        added = self.added
        for module in added:
            module.active = False
        self.root.eval()
        try:
            yield
        finally:
            for module in added:
                module.active = True
            for holder, own in shadows:
                del holder.__dict__[own]
            for part, mode in modes:
                part.training = mode

    # -- the way back --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def remove(self) -> None:
        """Give back the tower as it was: hooks and modules gone, values and flags restored. A second call does
        nothing."""
        for handle in self._handles:
            handle.remove()
        present = dict(self.root.named_parameters()) | dict(self.root.named_buffers())
        for name, value in self.base_values.items():
            if not hasattr(present[name], "full_tensor"):  # in parts on several processes it stays as it is
                present[name].copy_(value)
            present[name].grad = None
        for place, name in self._places:
            del place._modules[name]
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._handles, self._places, self._flags, self.base_values, self._reweighted = [], [], [], {}, []
        self.root.__dict__.pop(MARK, None)

    def __enter__(self) -> Tuned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class Method(ABC):
    """A way of tuning an image tower; its settings are keyword-only."""

    name: str

    def apply(self, module: nn.Module, num_classes: int) -> Tuned:
        """Freeze a model and bring this method into its image tower.

        Args:
            module: an encoder's module, or an image tower.
            num_classes: C; sizes that follow the task come from it.

        Raises:
            InputError: a tower without the parts that the method needs (it is left as it was), or one under tuning.
        """
        tuned = Tuned(module, self.name)
        try:
            self.inject(tuned, num_classes)
        except BaseException:
            tuned.remove()
            raise
        return tuned

    @abstractmethod
    def inject(self, tuned: Tuned, num_classes: int) -> None:
        """Add to the tower, or choose in it, what is trained."""


def _before(module: nn.Module, path: str) -> dict[str, Any]:
    """What is looked up before the parameters of the module that holds `path`."""
    return module.get_submodule(path.rpartition(".")[0]).__dict__


def _parts(site: Site, paths: tuple[str, ...], value: Tensor) -> dict[str, Tensor]:
    """A site's W or b, cut as the tower has it."""
    if len(paths) == 1:
        return {paths[0]: value}
    return dict(zip(paths, value.split(site.rows(len(paths))), strict=True))


def _shape_of(values: dict[str, Tensor], name: str) -> str:
    return str(tuple(values[name].shape)) if name in values else "nothing"
