"""Registries of named components: what each component needs and provides, and how it is made."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from imbalance_vlm.components.settings import Setting, grouped, positionals_of, settings_of
from imbalance_vlm.errors import InputError, did_you_mean

Section = Mapping[str, Any]
"""The part of a recipe that chooses a component: `name` (and `method` for a family), and the component's settings."""

Capabilities = frozenset[str] | Callable[[Mapping[str, Any]], frozenset[str]]
"""A set of capabilities, or a function from the component's settings to one."""

Offers = Mapping[str, Callable[[Section], Any]]
"""What a run offers to constructors, by parameter name; each is a function of the component's section."""


def offer(**values: Any) -> Offers:
    """Offers of these values, whatever the section."""
    return {name: partial(_value, value) for name, value in values.items()}


def _value(value: Any, section: Section) -> Any:
    return value


NAMING = ("name", "method")
"""The keys of a section that choose a component; all others are settings."""


@dataclass(frozen=True)
class Entry:
    """One component.

    Args:
        name: what a recipe calls it.
        build: the callable that makes it, or "module:attribute", imported on first use so that listing stays fast.
        summary: one line for `ls` and the documentation.
        paper: "Authors, title, venue" of the source; empty where there is none.
        needs: capabilities that the recipe's other components must provide. "a|b" is satisfied by either.
        provides: capabilities that this component brings.
        status: "" or "reconstruction" for a method whose paper has no public code to check against.
        methods: for a family, such as prompt tuning: the registry of its members. A recipe chooses one with the key
            `method`; the first is the default. `build` takes the member as its positional parameter `method`; an empty
            `build` means that the member is used alone.
    """

    name: str
    build: Callable[..., Any] | str
    summary: str
    paper: str = ""
    needs: Capabilities = frozenset()
    provides: Capabilities = frozenset()
    status: str = ""
    methods: Registry | None = None

    def member(self, section: Section) -> Entry:
        """The entry that a section chooses: for a family one of its members, otherwise this entry."""
        if self.methods is None:
            return self
        return self.methods.get(str(section.get("method", self.methods.names()[0])))

    def load(self) -> Callable[..., Any]:
        """The callable that makes the component, imported if necessary."""
        if callable(self.build):
            return self.build
        module, _, attribute = self.build.partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return loaded

    def settings(self, section: Section = {}) -> dict[str, Setting]:  # noqa: B006 (read only)
        """The settings that a recipe may give, by name; for a family, those of the member and of the family itself."""
        member = self.member(section)
        settings = settings_of(member.load())
        return settings if member is self or not self.build else settings | settings_of(self.load())

    def needed(self, section: Section) -> frozenset[str]:
        """What the other components of a recipe must provide, for these settings."""
        return self._capabilities("needs", section)

    def provided(self, section: Section) -> frozenset[str]:
        """What this component provides, for these settings."""
        return self._capabilities("provides", section)

    def _capabilities(self, side: str, section: Section) -> frozenset[str]:
        names: frozenset[str] = frozenset()
        member = self.member(section)
        for entry in (self,) if member is self else (self, member):
            capabilities: Capabilities = getattr(entry, side)
            if callable(capabilities):
                defaults = {name: setting.default for name, setting in self.settings(section).items()}
                capabilities = capabilities(defaults | dict(section))
            names |= capabilities
        return names

    def make(self, section: Section, offers: Offers) -> Any:
        """The component: positional parameters by name from `offers`, keyword-only ones from the section.

        Settings that are left out have their defaults. The values are not checked here: those of a recipe have been
        checked, and Python calls use `checked_settings`.

        Raises:
            InputError: a positional parameter that the run does not offer.
        """
        member = self.member(section)
        naming = NAMING if self.methods is not None else NAMING[:1]  # elsewhere `method` is a setting like any other
        settings = {key: value for key, value in section.items() if key not in naming}
        if member is self or not self.build:
            return _call(member, settings, offers, section)
        shared = settings_of(self.load())
        inner = _call(member, {key: value for key, value in settings.items() if key not in shared}, offers, section)
        outer = {key: value for key, value in settings.items() if key in shared}
        return _call(self, outer, {**offers, **offer(method=inner)}, section)


def _call(entry: Entry, settings: Mapping[str, Any], offers: Offers, section: Section) -> Any:
    build = entry.load()
    arguments: dict[str, Any] = {}
    for name, has_default in positionals_of(build).items():
        if name in offers:
            arguments[name] = offers[name](section)
        elif not has_default:
            raise InputError(
                f"the positional parameters of '{entry.name}' must be among what a run offers here "
                f"({', '.join(offers) or 'nothing'}), got `{name}`; make it keyword-only to set it from a recipe"
            )
    return build(**arguments, **grouped(build, settings))


class Registry:
    """The components of one kind, by name.

    >>> colours = Registry("colour")
    >>> colours.add("red", dict, "a warm colour")
    >>> colours.get("redd")
    Traceback (most recent call last):
    imbalance_vlm.errors.InputError: unknown colour 'redd'. Did you mean 'red'? Available: red
    """

    def __init__(
        self, kind: str, *, needs: frozenset[str] = frozenset(), provides: Capabilities = frozenset(), when: str = ""
    ) -> None:
        """Make an empty registry.

        Args:
            kind: what messages call one of its components.
            needs: capabilities that all of its components need.
            provides: capabilities that all of them provide: a set, or a function of the component's section.
            when: the capability without which a run does not use components of this kind, such as losses without
                training.
        """
        self.kind = kind
        self.needs = needs
        self.provides = provides
        self.when = when
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, build: Callable[..., Any] | str, summary: str, **fields: Any) -> None:
        """Register a component; `fields` are the other fields of `Entry`.

        Raises:
            InputError: the name is taken.
        """
        if name in self._entries:
            raise InputError(f"{self.kind} '{name}' is already registered ({self._entries[name].summary})")
        self._entries[name] = Entry(name, build, summary, **fields)

    def reset(self, entries: Iterable[Entry]) -> None:
        """Replace all entries."""
        self._entries = {entry.name: entry for entry in entries}

    def get(self, name: str) -> Entry:
        """The entry with this name.

        Raises:
            InputError: an unknown name; the message suggests a similar one and lists all.
        """
        if name not in self._entries:
            raise InputError(
                f"unknown {self.kind} {name!r}.{did_you_mean(name, self._entries)} "
                f"Available: {', '.join(self._entries)}"
            )
        return self._entries[name]

    def needed(self, section: Section) -> frozenset[str]:
        """What the other components of a recipe must provide for the component that this section names."""
        return self.needs | self.get(section["name"]).needed(section)

    def provided(self, section: Section) -> frozenset[str]:
        """What the component that this section names provides."""
        shared = self.provides(section) if callable(self.provides) else self.provides
        return shared | self.get(section["name"]).provided(section)

    def make(self, section: Section, offers: Offers | None = None) -> Any:
        """The component that a recipe's section names; see `Entry.make`."""
        return self.get(section["name"]).make(section, offers or {})

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def names(self) -> list[str]:
        return list(self._entries)
