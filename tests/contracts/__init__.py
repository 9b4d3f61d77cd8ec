"""Contracts: what every component of a kind must do, whatever its formula. One module per kind.

A contract takes a function that makes the component, and raises AssertionError when the component breaks it. Each
module runs its contracts over the registry of its kind, plug-ins included, and over components that are wrong on
purpose, one for each contract at least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import Tensor

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry, Offers, Registry
from imbalance_vlm.components.settings import Setting
from imbalance_vlm.errors import InputError
from imbalance_vlm.values import fits

Contract = Callable[[Any], None]

catalogue.load_plugins()


def over(registry: Registry, contracts: tuple[Contract, ...]) -> pytest.MarkDecorator:
    """Parametrize a test by (name, contract): every registered component and every contract."""
    pairs = [(name, contract) for name in registry.names() for contract in contracts]
    return pytest.mark.parametrize(
        ("name", "contract"), pairs, ids=[f"{name}-{contract.__name__}" for name, contract in pairs]
    )


@dataclass(frozen=True)
class Suite:
    """The contracts of a kind of component, and components on which `test_suites.py` sees them fail and hold.

    Attributes:
        contracts: all contracts of the kind.
        bad: components that are wrong on purpose, each with the contract that it breaks.
        sound: components that break no contract.
        of: makes what a contract takes out of a component.
    """

    contracts: tuple[Contract, ...]
    bad: Mapping[Any, Contract]
    sound: tuple[Any, ...]
    of: Callable[[Any], Any] = lambda component: component


# -- making components ---------------------------------------------------------------------------------------------


def is_ours(entry: Entry) -> bool:
    """Whether the component is of this package, and not of a plug-in."""
    return isinstance(entry.build, str) and entry.build.startswith("imbalance_vlm.")


def offers(**values: Any) -> Offers:
    """What a run offers to constructors, by parameter name."""
    return {name: partial(_value, value) for name, value in values.items()}


def _value(value: Any, _section: Mapping[str, Any]) -> Any:
    return value


def section_of(entry: Entry, **settings: Any) -> dict[str, Any]:
    """A recipe's section for the component; settings without a default get a value that their annotation accepts."""
    required = {name: some_value(setting) for name, setting in entry.settings().items() if setting.required}
    return {"name": entry.name, **required, **settings}


def variants(entry: Entry, make: Callable[[Entry, Mapping[str, Any]], object]) -> list[dict[str, Any]]:
    """The default settings, and each setting changed in turn: to every other name in its list of names, if it has one,
    or else to one other value. What `make` refuses is left out.
    """
    changed = [{name: value} for name, setting in entry.settings().items() for value in other_values(setting)]
    return [{}, *(settings for settings in changed if _is_accepted(lambda settings=settings: make(entry, settings)))]


def _is_accepted(make: Callable[[], object]) -> bool:
    try:
        make()
    except InputError:
        return False
    return True


@contextmanager
def noting(settings: Mapping[str, Any]) -> Iterator[None]:
    """Adds the settings to the error of a contract."""
    try:
        yield
    except Exception as error:
        error.add_note(f"with the settings {dict(settings)}")
        raise


def some_value(setting: Setting) -> Any:
    """A value that the setting accepts and that is not its default."""
    return other_values(setting)[0]


def other_values(setting: Setting) -> list[Any]:
    """The names that the setting accepts beside its default; if it has no list of names, one other value."""
    names = [name for name in _literals(setting.annotation) if setting.required or name != setting.default]
    numbers = [value for value in (0.65, 0.4, 3, 2, True, False, [1], [0.5], "x") if fits(setting.annotation, value)]
    changed = [value for value in numbers if setting.required or not _same(value, setting.default)]
    return names or changed[:1]


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _literals(annotation: Any) -> list[Any]:
    """The values that a `Literal` in the annotation lists."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]


# -- checks --------------------------------------------------------------------------------------------------------


def refuses(call: Callable[[], object], word: str, what: str = "this") -> None:
    """`call` must raise an InputError whose message holds `word`."""
    raised: Exception | None = None
    try:
        call()
    except Exception as error:
        raised = error
    assert raised is not None, f"{what} must be refused with an InputError"
    assert isinstance(raised, InputError), f"{what} must be an InputError, got {type(raised).__name__}: {raised}"
    assert word in str(raised), f"the error for {what} must name {word!r}, got: {raised}"


def close(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree to a tolerance, relative and absolute; infinities must be the same."""
    return got.shape == wanted.shape and torch.allclose(got, wanted, rtol=tolerance, atol=tolerance)


@contextmanager
def on_another_device(what: str) -> Iterator[None]:
    """For calls on the device "meta", which holds no numbers.

    A tensor left on the CPU cannot be combined with those there, and a value that is fetched does not exist.
    """
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"{what} does not work on the device it was moved to: {error}") from error


@contextmanager
def global_random_numbers_untouched(what: str) -> Iterator[None]:
    """Nothing inside may draw from torch's global generator, whose state a resumed run does not repeat."""
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state), f"{what} draws from torch's global generator"


@contextmanager
def counting_fetches() -> Iterator[dict[str, int]]:
    """Counts the calls that bring a tensor's value to Python."""
    count = {"fetches": 0}
    names = ("item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__")
    originals = {name: getattr(Tensor, name) for name in names}
    defined_here = {name for name in names if name in vars(Tensor)}

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def fetch(*args: Any, **kwargs: Any) -> Any:
            count["fetches"] += 1
            return original(*args, **kwargs)

        return fetch

    try:
        for name, original in originals.items():
            setattr(Tensor, name, counted(original))
        yield count
    finally:
        for name, original in originals.items():
            if name in defined_here:
                setattr(Tensor, name, original)
            else:
                delattr(Tensor, name)
