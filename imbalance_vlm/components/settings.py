"""The settings of a component: the keyword-only parameters of its constructor, and how their values are checked.

Everywhere in the package, the positional parameters of a constructor come from the run (class counts, widths, data) and
its keyword-only parameters from the recipe. Settings that several components share are declared once, as the fields of
a `SettingGroup`; a recipe sets them like the component's other settings.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from imbalance_vlm.components.ranges import Range
from imbalance_vlm.errors import InputError, did_you_mean

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


# -- values ----------------------------------------------------------------------------------------------------------
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    Path: ("a path", "paths"),
    type(None): ("null", "null"),
    Any: ("any value", "any values"),
}
"""The types of settings in words, singular and plural."""


def describe(annotation: Any, plural: bool = False) -> str:
    """What the annotation accepts, in words for the author of a recipe.

    >>> describe(list[int] | None), describe(Literal["a", "b"] | None), describe(dict[str, float | None])
    ('a list of whole numbers, or null', "'a', 'b' or null", 'a mapping of names to numbers or null')
    """
    *options, last = _options(annotation, plural)
    if not options:
        return last
    comma = "," if any(word in option for option in options for word in (" or ", " and ", " of ")) else ""
    return f"{', '.join(options)}{comma} or {last}"


def _options(annotation: Any, plural: bool) -> list[str]:
    """The alternatives that the annotation accepts, in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = " ".join(str(extra) for extra in arguments[1:] if isinstance(extra, Range))
        return [f"{describe(arguments[0], plural)} {bounds}"] if bounds else _options(arguments[0], plural)
    if origin is Literal:
        return [f"'{option}'" for option in arguments]
    if origin in (Union, types.UnionType):
        return [words for option in arguments for words in _options(option, plural)]
    if annotation is bool:
        return ["true", "false"]
    if origin in (list, tuple, Sequence):
        items = "" if arguments[0] is Any else f" of {describe(arguments[0], plural=True)}"
        return [("lists" if plural else "a list") + items]
    if origin in (dict, Mapping):
        keys = "names" if arguments[0] is str else describe(arguments[0], plural=True)
        items = "" if arguments[1] is Any else f" of {keys} to {describe(arguments[1], plural=True)}"
        return [("mappings" if plural else "a mapping") + items]
    name = getattr(annotation, "__name__", str(annotation))
    return [_WORDS.get(annotation, (name, name))[plural]]


def written(value: Any) -> str:
    """A value as a recipe writes it, with quotes around strings.

    >>> written({"a": None, "b": [True, "x"]})
    "{a: null, b: [true, 'x']}"
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {written(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    return repr(str(value) if isinstance(value, Path) else value)


def mistake(annotation: Any, value: Any) -> str | None:
    """What is wrong with `value`, or None if it fits `annotation`."""
    if fits(annotation, value):
        return None
    shown = written(value)
    if isinstance(value, str) and _number(value) is not None and fits(annotation, _number(value)):
        shown += ", which is a string: leave out the quotes"
    hint = did_you_mean(value, _literals(annotation)) if isinstance(value, str) else ""
    return f"must be {describe(annotation)}, got {shown}{'.' if hint else ''}{hint}"


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def fits(annotation: Any, value: Any) -> bool:
    """Whether `value` fits `annotation`, including its ranges."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        bounds = (extra for extra in arguments[1:] if isinstance(extra, Range))
        return fits(arguments[0], value) and all(bound.holds(value) for bound in bounds)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in arguments)
    if origin in (Union, types.UnionType):
        return any(fits(option, value) for option in arguments)
    if origin in (list, tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(arguments[0], item) for item in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(arguments[0], key) and fits(arguments[1], item) for key, item in value.items()
        )
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation is Path:
        return isinstance(value, (str, Path)) and bool(str(value))
    if annotation is type(None) or annotation is None:
        return value is None
    return isinstance(value, annotation)


def _literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return [str(option) for option in get_args(annotation)]
    return [option for part in get_args(annotation) for option in _literals(part)]


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
