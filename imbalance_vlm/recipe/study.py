"""Studies: one recipe, many overrides, one table. `imbalance_vlm.recipe.schema.STUDY` lists their keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imbalance_vlm.errors import did_you_mean
from imbalance_vlm.recipe.columns import table_columns
from imbalance_vlm.recipe.load import Loaded, load, merge, nested, undotted
from imbalance_vlm.recipe.problems import Problem, RecipeError
from imbalance_vlm.recipe.resolve import check_section, resolve
from imbalance_vlm.recipe.schema import STUDY
from imbalance_vlm.values import written

EPOCH = "epoch"
"""The `plot.x` that plots the curves of the runs."""


@dataclass(frozen=True)
class Plan:
    """The runs of a recipe or a study, and the table and plot of a study.

    Args:
        name: of the recipe or study.
        recipes: the complete recipes to run, in order.
        study: the checked sections `grid`, `table` and `plot` of a study, empty for a recipe.
    """

    name: str
    recipes: list[dict[str, Any]]
    study: Mapping[str, Any]

    @property
    def is_study(self) -> bool:
        return bool(self.study)

    @property
    def axes(self) -> tuple[str, ...]:
        """The keys that the grid of a study varies."""
        return tuple((self.study.get("grid") or {}).get("axes") or ())

    @property
    def table(self) -> Mapping[str, Any]:
        return self.study.get("table") or {}

    @property
    def plot(self) -> Mapping[str, Any] | None:
        return self.study.get("plot")

    def label(self, recipe: Mapping[str, Any]) -> str:
        """The name of a run's row in the table of the study."""
        return str(recipe["name"]).removeprefix(f"{self.name}/")

    def coordinates(self) -> dict[str, dict[str, Any]]:
        """Where each row of a study lies in its grid: {label: {"variant": ..., axis: value, ...}}."""
        places = {}
        for recipe in self.recipes:
            label = self.label(recipe)
            variant = label.split("/")[: -len(self.axes) or None]
            places[label] = {"variant": "/".join(variant), **{axis: value_at(recipe, axis) for axis in self.axes}}
        return places


def plan(recipe: str | Path | Mapping[str, Any], overrides: Any = None) -> Plan:
    """Load, expand and check a recipe or a study.

    Raises:
        RecipeError: every problem of every run, at once, before any of them starts.
    """
    loaded = load(recipe, overrides)
    sections = {key: loaded.tree.pop(key) for key in STUDY if key in loaded.tree}
    if "grid" not in sections:
        recipes, problems = _resolved([loaded])
        problems += [Problem(key, "needs a `grid`: only a study has it", loaded.origin(key)) for key in sections]
        study: dict[str, Any] = {}
    else:
        study, problems = _checked_study(sections, loaded)
        grid = _readable(sections["grid"]) if problems else study["grid"]
        recipes, problems_of_runs = _resolved(_expand(loaded, grid) if grid else [])
        problems += problems_of_runs
    planned = Plan(_name(loaded), recipes, study)
    if not problems and planned.is_study:  # rows and columns follow from the runs
        problems = _unknown_columns(planned, loaded) + _unknown_rows(planned, loaded) + _repeated_runs(planned, loaded)
    if problems:
        raise RecipeError(problems)
    return planned


def value_at(tree: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings; None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _name(loaded: Loaded) -> str:
    return str(loaded.tree.get("name", "unnamed"))


def _resolved(runs: Iterator[Loaded] | list[Loaded]) -> tuple[list[dict[str, Any]], list[Problem]]:
    recipes, problems = [], []
    for run in runs:
        try:
            recipes.append(resolve(run))
        except RecipeError as error:
            problems += error.problems
    return recipes, problems


# -- checks ----------------------------------------------------------------------------------------------------------
def _checked_study(sections: Mapping[str, Any], loaded: Loaded) -> tuple[dict[str, Any], list[Problem]]:
    """The sections of a study with their defaults, and what is wrong with them."""
    problems: list[Problem] = []

    def report(key: str, message: str) -> None:
        problems.append(Problem(key, message, loaded.origin(key)))

    study = {key: check_section(STUDY[key], value, key, report) for key, value in sections.items()}
    grid = study["grid"]
    for key, value in grid.items():
        if key in _mapping(sections["grid"]) and value in (None, {}, [], ()):
            report(f"grid.{key}", "must not be empty")
    for axis, values in _mapping(grid["axes"]).items():
        if values in ([], ()):
            report(f"grid.axes.{axis}", "must not be empty")
        elif isinstance(values, (list, tuple)) and (twice := _repeated(values)):
            report(f"grid.axes.{axis}", f"must hold each value once, got {written(twice[0])} and {written(twice[1])}")
    seeds = grid["seeds"] if isinstance(grid["seeds"], (list, tuple)) else []
    if any(seed in seeds[:place] for place, seed in enumerate(seeds)):
        report("grid.seeds", f"must differ from one another, got {written(seeds)}")
    return study, problems + _overridden(grid, loaded)


def _mapping(value: Any) -> Mapping[str, Any]:
    """The value, or an empty mapping in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def _readable(grid: Any) -> dict[str, Any] | None:
    """What can be expanded of a grid with problems, so that those of its runs are found too; None without variants.

    An axis whose values are not a list has one value.
    """
    children = STUDY["grid"].children
    parts = {key: _mapping(grid).get(key) or {} for key in children}
    variants = {
        str(key): value
        for key, value in _mapping(parts["variants"]).items()
        if value is None or isinstance(value, Mapping)
    }
    unreadable = grid is not None and (not isinstance(grid, Mapping) or not set(grid) <= set(children))
    if unreadable or not isinstance(parts["axes"], Mapping) or (parts["variants"] and not variants):
        return None  # what these would set is unknown
    axes = {
        str(axis): values if isinstance(values, (list, tuple)) else [values] for axis, values in parts["axes"].items()
    }
    return {"variants": variants, "axes": axes, "seeds": None}


def _repeated(values: Sequence[Any]) -> tuple[Any, Any] | None:
    """The first two values that a recipe reads as the same one, such as 1 and 1.0, or `focal` and `{name: focal}`."""
    seen: dict[str, Any] = {}
    for value in values:
        key = repr(_canonical({"name": value} if isinstance(value, str) else value))
        if key in seen:
            return seen[key], value
        seen[key] = value
    return None


def _canonical(value: Any) -> Any:
    """A value in one form: mappings by sorted keys, whole numbers as integers."""
    if isinstance(value, Mapping):
        return [(key, _canonical(value[key])) for key in sorted(value, key=str)]
    if isinstance(value, (list, tuple)):
        return list(map(_canonical, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _overridden(grid: Mapping[str, Any], loaded: Loaded) -> list[Problem]:
    """Overrides of keys that the grid varies: one of the two would be ignored."""
    varied = {str(axis): f"grid.axes.{axis}" for axis in _mapping(grid["axes"])}
    if grid["seeds"]:
        varied["seed"] = "grid.seeds"
    return [
        Problem(key, f"is varied by the study; set {varied[key]} to a list of one value instead", loaded.origin(key))
        for key in loaded.named
        if key in varied
    ]


def _unknown_columns(planned: Plan, loaded: Loaded) -> list[Problem]:
    """Names of table columns that no run can have."""
    columns = table_columns(recipe["evaluation"] for recipe in planned.recipes)
    places = {"variant", *planned.axes}
    allowed = {
        **{key: set(columns) for key in ("table.columns", "table.sort", "table.score", "plot.y")},
        **{key: {*columns, *places} for key in ("plot.by", "plot.each")},
        "plot.x": {*columns, *places, EPOCH},
    }
    problems = []
    for key, names in allowed.items():
        value = value_at(planned.study, key)
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and name not in names:
                message = f"unknown table column {name!r}.{did_you_mean(name, columns)} Available: {', '.join(columns)}"
                problems.append(Problem(key, message, loaded.origin(key)))
    return problems


def _unknown_rows(planned: Plan, loaded: Loaded) -> list[Problem]:
    """A baseline that is not a row of the study, or an average over a key that is not an axis."""
    problems = []
    labels = list(dict.fromkeys(map(planned.label, planned.recipes)))
    for key, kind, options in (("baseline", "a row", labels), ("average", "an axis", list(planned.axes))):
        name = planned.table.get(key)
        if name and name not in options:
            message = f"must be {kind} of the study, got {name!r}.{did_you_mean(name, options)}"
            problems.append(Problem(f"table.{key}", message, loaded.origin(f"table.{key}")))
    return problems


def _repeated_runs(planned: Plan, loaded: Loaded) -> list[Problem]:
    """Runs that would be counted as several: two of one name and seed, or of axis values that mean the same."""
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    places = planned.coordinates()
    for recipe in planned.recipes:
        label = planned.label(recipe)
        content = _canonical({**recipe, "name": places[label]["variant"]})
        keys = repr((label, recipe["seed"])), repr(content)
        if same := next((seen[key] for key in keys if key in seen), None):
            message = f"must name each run once, got {written(same)} and {written(label)} of seed {recipe['seed']}"
            problems.append(Problem("grid", message, loaded.origin("grid")))
        seen |= dict.fromkeys(keys, label)
    return problems


# -- expansion -------------------------------------------------------------------------------------------------------
def _expand(loaded: Loaded, grid: Mapping[str, Any]) -> Iterator[Loaded]:
    """Variants, then axes, then seeds; a run is named after the choices that made it."""
    axes = grid["axes"] or {}
    source = loaded.origin("grid")
    for (variant, overrides), values in itertools.product(
        (grid["variants"] or {"": {}}).items(), itertools.product(*axes.values())
    ):
        chosen = dict(zip(axes, values, strict=True))
        changes = undotted(overrides or {})
        tree = merge(loaded.tree, changes)
        for change in (loaded.changes, *(nested(key, value) for key, value in chosen.items())):
            tree = merge(tree, {key: value for key, value in change.items() if key not in STUDY})
        label = "/".join([variant, *map(_label, values)]).strip("/")
        tree["name"] = f"{_name(loaded)}/{label}" if label else _name(loaded)
        origins = loaded.origins | dict.fromkeys((*changes, *chosen), f"{source} (grid, {label})")
        for seed in grid["seeds"] or [loaded.tree.get("seed", 0)]:
            yield replace(loaded, tree=tree | {"seed": seed}, origins=origins)


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        words = [str(item) if key == "name" else f"{key}={item}" for key, item in value.items()]
        return "-".join(words).replace("/", "-")
    return str(value).replace("/", "-")
