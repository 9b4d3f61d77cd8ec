"""The settings of a component: the keyword-only parameters of its constructor.

Everywhere in the package, the positional parameters of a constructor come from the run (class counts, widths, data) and
its keyword-only parameters from the recipe. Settings that several components share are declared once, as the fields of
a `SettingGroup`; a recipe sets them like the component's other settings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.values import mistake

Build = Callable[..., Any]


@dataclass(frozen=True)
class Setting:
    """One parameter that a recipe may set; `default` is `inspect.Parameter.empty` when it must be given."""

    name: str
    annotation: Any
    default: Any = field(default=inspect.Parameter.empty)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def is_default(self, value: Any) -> bool:
        """Whether a recipe's value is the default; recipes write tuples as lists."""
        default = list(self.default) if isinstance(self.default, tuple) else self.default
        return not self.required and bool(value == default)

    def marked(self, mark: type) -> Any:
        """The metadata of this type in an `Annotated` annotation, or None."""
        if get_origin(self.annotation) is not Annotated:
            return None
        marks = (extra for extra in get_args(self.annotation)[1:] if extra is mark or isinstance(extra, mark))
        return next(marks, None)


class SettingGroup:
    """Base of frozen, keyword-only dataclasses whose fields are settings that several components share.

    A constructor takes the group as one keyword-only parameter, whose default may differ from component to component:

    >>> @dataclass(frozen=True, kw_only=True)
    ... class Crops(SettingGroup):
    ...     views: int = 4
    >>> def component(*, rate: float = 0.1, crops: Crops = Crops(views=2)) -> tuple[float, Crops]:
    ...     return rate, crops
    >>> {name: setting.default for name, setting in settings_of(component).items()}
    {'rate': 0.1, 'views': 2}
    >>> component(**grouped(component, {"views": 8}))
    (0.1, Crops(views=8))
    """


def settings_of(build: Build) -> dict[str, Setting]:
    """The settings of a component, by name: its keyword-only parameters and the fields of its setting groups."""
    return dict(_settings_of(build))


def grouped(build: Build, values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `build` from flat settings: those of a setting group are gathered into that group."""
    arguments = dict(values)
    for name, (group, default) in _groups_of(build).items():
        members = {member.name for member in dataclasses.fields(group)} & set(arguments)
        if members:
            changes = {member: arguments.pop(member) for member in members}
            arguments[name] = dataclasses.replace(default, **changes) if default is not None else group(**changes)
    return arguments


def positionals_of(build: Build) -> dict[str, bool]:
    """The parameters that come from the run, by name, and whether each has a default."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: parameter.default is not inspect.Parameter.empty
        for name, parameter in inspect.signature(build).parameters.items()
        if parameter.kind in kinds
    }


@cache  # every run of a study asks for the settings of every component
def _keywords_of(build: Build) -> dict[str, Setting]:
    target = vars(build)["__init__"] if inspect.isclass(build) and "__init__" in vars(build) else build
    if inspect.isclass(target):  # the constructor is inherited
        target = target.__init__
    keywords = {
        name: parameter
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    # Only these annotations are resolved: the others may name types whose import is slow.
    annotations = {
        name: Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
        for name, parameter in keywords.items()
    }
    scope = getattr(target, "__globals__", {})
    hints = get_type_hints(SimpleNamespace(__annotations__=annotations), globalns=scope, include_extras=True)
    return {name: Setting(name, hints[name], parameter.default) for name, parameter in keywords.items()}


@cache
def _settings_of(build: Build) -> dict[str, Setting]:
    settings: dict[str, Setting] = {}
    for setting in _keywords_of(build).values():
        group = _group(setting.annotation)
        if group is None:
            settings[setting.name] = setting
            continue
        hints = get_type_hints(group, include_extras=True)
        for member in dataclasses.fields(group):
            default = inspect.Parameter.empty if member.default is dataclasses.MISSING else member.default
            if not setting.required and setting.default is not None:
                default = getattr(setting.default, member.name)
            settings[member.name] = Setting(member.name, hints[member.name], default)
    return settings


@cache
def _groups_of(build: Build) -> dict[str, tuple[type[Any], Any]]:
    """The setting groups among the parameters of `build`, each with its default (None where it has none)."""
    groups = {}
    for setting in _keywords_of(build).values():
        if (group := _group(setting.annotation)) is not None:
            groups[setting.name] = (group, None if setting.required else setting.default)
    return groups


def _group(annotation: Any) -> type[Any] | None:
    return annotation if inspect.isclass(annotation) and issubclass(annotation, SettingGroup) else None


def documented_arguments(target: Any) -> dict[str, str]:
    """The descriptions in the `Args:` and `Attributes:` sections of an object's own docstring, each on one line.

    >>> def area(width: int, height: int) -> int:
    ...     \"\"\"An area.
    ...
    ...     Args:
    ...         width, height: of the rectangle,
    ...             in pixels.
    ...
    ...     Returns:
    ...         pixels: a count.
    ...     \"\"\"
    >>> documented_arguments(area)
    {'width': 'of the rectangle, in pixels.', 'height': 'of the rectangle, in pixels.'}
    """
    descriptions: dict[str, str] = {}
    names: list[str] = []
    inside = False
    for line in inspect.cleandoc(target.__doc__ or "").splitlines():
        if line and not line.startswith(" "):
            inside, names = line in ("Args:", "Attributes:"), []
        elif inside and (entry := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line)):
            names = entry[1].split(", ")
            descriptions |= dict.fromkeys(names, entry[2])
        elif inside and line.startswith(" " * 8):
            descriptions |= {name: f"{descriptions[name]} {line.strip()}" for name in names}
    return descriptions


def documented_settings(build: Build) -> dict[str, str]:
    """The descriptions of a component's settings, by name: from its docstring, its bases and its setting groups."""
    descriptions: dict[str, str] = {}
    for target in (build, *(group for group, _ in _groups_of(build).values())):
        for owner in target.__mro__ if inspect.isclass(target) else (target,):
            constructor = vars(owner).get("__init__") if inspect.isclass(owner) else None
            for documented in filter(None, (owner, constructor)):
                descriptions = documented_arguments(documented) | descriptions
    return descriptions


def checked_settings(what: str, allowed: Mapping[str, Setting], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings, checked; `what` names the component in the message.

    Raises:
        InputError: unknown, missing or unsuitable settings; the message lists all of them.
    """
    problems = [
        f"unknown setting `{name}`.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed) or 'none'}"
        for name in values
        if name not in allowed
    ]
    problems += [
        f"`{name}` {problem}"
        for name in values
        if name in allowed and (problem := mistake(allowed[name].annotation, values[name]))
    ]
    problems += [f"`{name}` is missing" for name, setting in allowed.items() if setting.required and name not in values]
    if problems:
        raise InputError(f"{what}: {'; '.join(problems)}")
    return dict(values)


def check_arguments(**arguments: tuple[Any, Any]) -> None:
    """Check the arguments of a public function, each as (annotation, value).

    Raises:
        InputError: values that do not fit; the message lists all of them.
    """
    problems = [f"`{name}` {problem}" for name, (kind, value) in arguments.items() if (problem := mistake(kind, value))]
    if problems:
        raise InputError("; ".join(problems))
