"""From YAML files and `key.path=value` overrides to one nested mapping, with the origin of every key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imbalance_vlm.components import catalogue
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.files import expanded
from imbalance_vlm.recipe.problems import Problem, RecipeError
from imbalance_vlm.recipe.schema import RECIPE, Component, Node, child_of, replaces, shared_settings
from imbalance_vlm.values import path_problem, written

COMMAND_LINE = "command line"
MAX_VALUES, MAX_DEPTH, MAX_BITS = 100_000, 64, 1000
"""Most values in a recipe, levels below one another and bits of a whole number; studies have a few hundred values."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice and reads 1e-3 as a number (YAML 1.2)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            try:
                twice = key in seen
            except TypeError:
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word or a number", key_node.start_mark
                ) from None
            if twice:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


@dataclass
class Loaded:
    """A merged recipe.

    Args:
        tree: the recipe as written, includes and overrides merged.
        origins: the file that each key comes from.
        source: the file of the recipe itself.
        changes: the overrides of the command line, which also win over the variants of a study.
        named: the keys of these overrides.
    """

    tree: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)
    source: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    def origin(self, key: str) -> str:
        """The file that the closest enclosing key comes from."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            if source := self.origins.get(".".join(parts[:end])):
                return source
        return self.source


def recipes_folder() -> Path:
    """The folder of the recipes that come with the package: inside a wheel, or next to the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, such as "icons_lt/linear_probe"."""
    root = recipes_folder()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not any(part.startswith("_") for part in name.split("/")))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or as a name that `list_recipes` shows.

    Raises:
        InputError: neither a file nor a known name.
    """
    path = expanded(name, "a recipe")
    if path.is_file():
        return path
    short = re.sub(r"^recipes/|\.ya?ml$", "", path.as_posix())
    packaged = recipes_folder() / f"{short}.yaml"
    if packaged.is_file():
        return packaged
    packaged_names = list_recipes()
    raise InputError(
        f"recipe {str(name)!r} must be a YAML file or the name of a packaged recipe, and is neither."
        f"{did_you_mean(short, packaged_names)} `imbalance-vlm ls recipes` lists them"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; {} for an empty file.

    Raises:
        InputError: a file that cannot be read, or holds no mapping of at most `MAX_VALUES` values.
    """
    try:
        content = _parsed(path.read_bytes(), "", str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError([Problem("", f"must be a mapping of keys, got a {type(content).__name__}", str(path))])
    return content


def _parsed(text: str | bytes, key: str, source: str) -> Any:
    """YAML as plain values, of a size that can be worked with."""
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except RecursionError as error:
        raise RecipeError([Problem(key, "not valid YAML: nested too deeply", source)]) from error
    except Exception as error:  # a value that does not fit its tag raises one of a dozen types
        reason = (
            " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else f"a value cannot be read ({error})"
        )
        raise RecipeError([Problem(key, f"not valid YAML: {written(text) if key else reason}", source)]) from error
    return _sized(content, key, source)


def _sized(content: Any, key: str, source: str) -> Any:
    """The content, if its size, its depth and its numbers can be worked with."""
    try:
        values, depth = _extent(content, {}, 1)
        if depth > MAX_DEPTH:
            raise ValueError(f"must have at most {MAX_DEPTH} levels, got {depth}")
    except ValueError as error:
        raise RecipeError([Problem(key, str(error), source)]) from error
    if values > MAX_VALUES:
        message = f"must hold at most {MAX_VALUES:,} values, got {values:.2e} when its aliases (*name) are written out"
        raise RecipeError([Problem(key, message, source)])
    return content


def _extent(content: Any, known: dict[int, tuple[int, int]], level: int) -> tuple[int, int]:
    """Number of values and of levels, with every alias written out; ten short lines can mean a billion values."""
    if isinstance(content, int) and content.bit_length() > MAX_BITS:
        raise ValueError(f"a whole number must have at most {MAX_BITS} bits, got {content.bit_length():,}")
    if not isinstance(content, (Mapping, list, tuple)):
        return 1, 0
    if id(content) not in known and level > MAX_DEPTH:
        raise ValueError(f"must have at most {MAX_DEPTH} levels, got more, or a value that holds itself")
    if id(content) not in known:
        keys, parts = (content.keys(), content.values()) if isinstance(content, Mapping) else ((), content)
        extents = [_extent(part, known, level + 1) for part in parts]
        deepest = max((depth for _, depth in [*extents, *(_extent(key, known, level) for key in keys)]), default=0)
        known[id(content)] = 1 + sum(values for values, _ in extents), 1 + deepest
    return known[id(content)]


def merge(base: Mapping[str, Any], over: Mapping[str, Any], node: Node | None = RECIPE) -> dict[str, Any]:
    """`over` on top of `base`, mapping by mapping.

    A bare name means a component without settings. Which mappings replace others instead of being merged with them is
    part of the schema (`imbalance_vlm.recipe.schema.replaces`). A component that replaces another keeps the settings
    that all components of its kind share (the protocol of a dataset), and those that it requires (the `root` of a
    dataset).

    Args:
        base: a recipe, or a part of one.
        over: the same part of another recipe, whose keys win.
        node: the part in the schema; None for a part that the schema does not hold.
    """
    merged = deepcopy(dict(base))
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, str) and isinstance(value, Mapping):
            below = {"name": below}
        if isinstance(below, Mapping) and isinstance(value, str):
            value = {"name": value}
        child = child_of(node, key)
        if not isinstance(below, Mapping) or not isinstance(value, Mapping):
            merged[key] = deepcopy(value)
        elif replaces(child, below, value):
            merged[key] = deepcopy(_settings_to_keep(child, below, value) | dict(value))
        else:
            merged[key] = merge(below, value, child)
    return merged


def _settings_to_keep(node: Node | None, below: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a component that remain when another component of its kind replaces it."""
    if not isinstance(node, Component) or not node.shared:
        return {}
    name = str(over.get("name"))
    settings = node.registry.get(name).settings(over) if name in node.registry else {}
    required = {name for name, setting in settings.items() if setting.required}
    return {key: value for key, value in below.items() if key in {*shared_settings(node.shared), *required}}


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """`nested("a.b", 1)` is `{"a": {"b": 1}}`.

    Raises:
        RecipeError: a key of more parts than any recipe has levels.
    """
    if dotted.count(".") >= MAX_DEPTH:
        raise RecipeError([Problem(f"{dotted[:80]}...", f"must have at most {MAX_DEPTH} parts between dots")])
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def undotted(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping in which `a.b: 1` is written out as `a: {b: 1}`."""
    result: dict[str, Any] = {}
    for key, value in mapping.items():
        result = merge(result, nested(str(key), value))
    return result


def _leaves(tree: Any, prefix: str = "") -> Iterable[str]:
    if prefix:
        yield prefix
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))


def _load_file(path: Path, chain: tuple[Path, ...]) -> Loaded:
    resolved = path.resolve()
    if resolved in chain:
        cycle = " -> ".join(str(step.name) for step in (*chain, resolved))
        raise RecipeError([Problem("include", f"includes itself: {cycle}", str(path))])
    tree = read_yaml(path)
    includes = tree.pop("include", [])
    includes = [includes] if isinstance(includes, str) else includes
    if not isinstance(includes, list) or not all(isinstance(item, str) for item in includes):
        raise RecipeError([Problem("include", f"must be a list of paths, got {written(includes)}", str(path))])
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for item in includes:
        if problem := path_problem(item):
            raise RecipeError(
                [Problem("include", f"must be a list of paths, got {written(item)}, {problem}", str(path))]
            )
        target = path.parent / item
        if not target.is_file():
            target = recipes_folder() / f"{item.removesuffix('.yaml')}.yaml"
        if not target.is_file():
            message = f"no file {item!r} next to the recipe, and no packaged recipe of that name"
            raise RecipeError([Problem("include", message, str(path))])
        below = _load_file(target, (*chain, resolved))
        below.tree.pop("name", None)  # a name belongs to one file
        merged = merge(merged, below.tree)
        origins.update(below.origins)
    origins.update(dict.fromkeys(_leaves(tree), str(path)))
    return Loaded(merge(merged, tree), origins, str(path))


def parse_override(text: str) -> tuple[str, Any]:
    """ "training.epochs=5" as ("training.epochs", 5): the value is YAML, or a path of bytes that YAML cannot hold."""
    key, sign, value = text.partition("=")
    if not sign or not key or any(not part for part in key.split(".")):
        raise RecipeError(
            [Problem("", f"an override must look like key.path=value, got {written(text)}", COMMAND_LINE)]
        )
    if yaml.reader.Reader.NON_PRINTABLE.search(value):
        return key, value
    return key, _parsed(value, key, COMMAND_LINE)


def load(recipe: str | Path | Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] | None = None) -> Loaded:
    """A recipe with its includes and overrides merged, unchecked.

    Args:
        recipe: a file, the name of a packaged recipe, or the mapping itself.
        overrides: "key.path=value" strings, or a mapping whose keys may be dotted. Their order does not matter.

    Raises:
        InputError: no such recipe, or a file or override that is not valid YAML.
    """
    catalogue.load_plugins()  # which settings stay when another component is named depends on both
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(recipe, Mapping):
        if "include" in recipe:
            raise RecipeError([Problem("include", "only a recipe in a file can include others")])
        loaded = Loaded(deepcopy(dict(_sized(recipe, "", "recipe"))), source="recipe")
    else:
        path = find_recipe(recipe)
        loaded = _load_file(path, ())
        loaded.tree.setdefault("name", default_name(path))
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else [parse_override(o) for o in overrides or ()]
    for key, value in pairs:
        loaded.changes = merge(loaded.changes, _change(key, _sized(value, key, COMMAND_LINE)))
    loaded.named = tuple(key for key, _ in pairs)
    before = set(_leaves(loaded.tree))
    loaded.tree = merge(loaded.tree, loaded.changes)
    new = set(_leaves(loaded.tree)) - before  # with the sections that an override creates
    below = {leaf for key, value in pairs for leaf in _leaves(value, key)}
    loaded.origins.update(dict.fromkeys({*loaded.named, *below, *new}, COMMAND_LINE))
    return loaded


def _change(key: str, value: Any) -> dict[str, Any]:
    """One override as a tree; the axes of a grid are keys with dots, which stay."""
    axis = key.removeprefix("grid.axes.")
    return {"grid": {"axes": {axis: value}}} if axis != key else nested(key, value)


def default_name(path: Path) -> str:
    """The path under recipes/ without its suffix, or the bare file name elsewhere."""
    try:
        return path.resolve().relative_to(recipes_folder().resolve()).with_suffix("").as_posix()
    except ValueError:
        return path.stem
