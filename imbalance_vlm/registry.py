"""Named components: one entry a line, imported when used, with lookup errors that help."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, get_type_hints

from imbalance_vlm.errors import InputError, did_you_mean

Needs = Callable[[Mapping[str, Any]], frozenset[str]]


@dataclass(frozen=True)
class Entry:
    """One component.

    Args:
        name: what a recipe calls it.
        build: the callable that makes it, or "module:attribute", imported on first use so that listing stays fast.
        summary: one line for `ls` and the README.
        paper: "Authors, title, venue" of the source; empty for folklore.
        provides: of an encoder: what it offers.
        needs: what the encoder must provide ("text", "tokens", ...): a set, or a function of the component's settings.
        status: "" or "reconstruction" for a method whose paper has no public code to check against.
        methods: of a family, such as prompt tuning: its members. A recipe names one by the key `method`, the first is
            the default, and the settings are the member's.
    """

    name: str
    build: Callable[..., Any] | str
    summary: str
    paper: str = ""
    needs: frozenset[str] | Needs = frozenset()
    provides: frozenset[str] = frozenset()
    status: str = ""
    methods: Registry | None = None

    def member(self, section: Mapping[str, Any]) -> Entry:
        """The entry that a recipe's section means: of a family, the member it names."""
        if self.methods is None:
            return self
        return self.methods.get(str(section.get("method", self.methods.names()[0])))

    def load(self) -> Callable[..., Any]:
        if callable(self.build):
            return self.build
        module, _, attribute = self.build.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return loaded

    def needed(self, settings: Mapping[str, Any]) -> frozenset[str]:
        """What the encoder must provide for these settings."""
        return self.needs(settings) if callable(self.needs) else self.needs

    def settings(self) -> dict[str, Setting]:
        return settings_of(self.load())


@dataclass(frozen=True)
class Setting:
    """One parameter that a recipe may set: `default` is `inspect.Parameter.empty` when it must be given."""

    name: str
    annotation: Any
    default: Any = field(default=inspect.Parameter.empty)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty


def settings_of(build: Callable[..., Any]) -> dict[str, Setting]:
    """The keyword-only parameters of `build`.

    The convention of the whole package: positional parameters come from the pipeline (counts, widths, data),
    keyword-only ones belong to the recipe. A class whose constructor hands `**shared` on to its parent's has the
    settings of its parent behind its own.
    """
    found: dict[str, Setting] = {}
    for constructor in constructors_of(build):
        own = _settings_of(vars(constructor)["__init__"] if inspect.isclass(constructor) else constructor)
        found |= {name: setting for name, setting in own.items() if name not in found}
    return found


def constructors_of(build: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Whose settings `build` has: its own, and those of each parent that a constructor hands its `**shared` on to."""
    if not inspect.isclass(build):
        return [build]
    homes: list[Any] = [one for one in build.__mro__ if "__init__" in vars(one) and one is not object]
    kinds = [{one.kind for one in _parameters(home.__init__).values()} for home in homes]
    last = next((row for row, kind in enumerate(kinds) if inspect.Parameter.VAR_KEYWORD not in kind), len(homes))
    return homes[: last + 1]


def _parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(target).parameters


@cache  # each run of a study asks for those of every component
def _settings_of(target: Callable[..., Any]) -> dict[str, Setting]:
    settable = {
        name: parameter
        for name, parameter in _parameters(target).items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    # Only their annotations are looked up: the others may name types whose import is slow.
    annotations = {
        name: Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
        for name, parameter in settable.items()
    }
    scope = getattr(target, "__globals__", {})
    hints = get_type_hints(SimpleNamespace(__annotations__=annotations), globalns=scope, include_extras=True)
    return {name: Setting(name, hints[name], parameter.default) for name, parameter in settable.items()}


class Registry:
    """The components of one kind, by name.

    >>> colours = Registry("colour")
    >>> colours.add("red", dict, "like a rose")
    >>> colours.get("redd")
    Traceback (most recent call last):
    imbalance_vlm.errors.InputError: unknown colour 'redd'. Did you mean 'red'? Available: red
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, build: Callable[..., Any] | str, summary: str, **more: Any) -> None:
        """Register a component; `more` are the other fields of `Entry`. A name taken already is refused."""
        if name in self._entries:
            raise InputError(f"{self.kind} '{name}' is registered already ({self._entries[name].summary})")
        self._entries[name] = Entry(name, build, summary, **more)

    def get(self, name: str) -> Entry:
        if name not in self._entries:
            raise InputError(
                f"unknown {self.kind} {name!r}.{did_you_mean(name, self._entries)} "
                f"Available: {', '.join(self._entries)}"
            )
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        return list(self._entries)
