"""Studies: one recipe, many overrides.

grid:
  variants: {name: {overrides}, ...}     named sets of overrides
  axes: {key.path: [values], ...}        every combination of the values
  seeds: [0, 1, 2]
table: {columns: [...], sort: overall, baseline: VARIANT, score: h}
                                       baseline: the row the others are tested against, in score (overall)
                                       average: an axis, whose rows are averaged below them
plot: {x: ..., y: [...], by: ..., log_x: true}                x: epoch plots the curves of the runs
      {x: KEY.OF.AN.AXIS, y: [...], each: variant}             a line for each variant
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imbalance_vlm.components.ranges import Natural
from imbalance_vlm.components.settings import mistake
from imbalance_vlm.errors import did_you_mean
from imbalance_vlm.recipe.load import Loaded, load, merge, nested, undotted
from imbalance_vlm.recipe.problems import Problem, RecipeError
from imbalance_vlm.recipe.schema import check
from imbalance_vlm.results.columns import COLUMNS

STUDY_KEYS = ("grid", "table", "plot")
_GRID: dict[str, Any] = {
    "variants": dict[str, dict[str, Any] | None],
    "axes": dict[str, list[Any]],
    "seeds": list[Natural],
}
_TABLE: dict[str, Any] = {
    "columns": list[str] | None,
    "sort": str | None,
    "baseline": str | None,
    "score": str | None,
    "average": str | None,
}
_PLOT: dict[str, Any] = {
    "x": str,
    "y": list[str],
    "by": str | None,
    "each": str | None,
    "log_x": bool,
    "lines": bool,
    "title": str,
    "x_label": str,
    "y_label": str,
}


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for: its name, the complete recipes to run in order, and how to show the results."""

    name: str
    recipes: list[dict[str, Any]]
    is_study: bool = False
    axes: tuple[str, ...] = ()
    table: Mapping[str, Any] = field(default_factory=dict)
    plot: Mapping[str, Any] | None = None


def plan(recipe: str | Path | Mapping[str, Any], overrides: Any = None) -> Plan:
    """Load, expand and check a recipe or a study.

    Raises:
        RecipeError: every problem of every run it would make, at once, before any of them starts.
    """
    loaded = load(recipe, overrides)
    study = {key: loaded.tree.pop(key) for key in STUDY_KEYS if key in loaded.tree}
    is_study = "grid" in study
    problems = _study_problems(study, loaded)
    if problems and is_study:  # a broken grid cannot be expanded
        raise RecipeError(problems)
    recipes = []
    for run in _expand(loaded, study["grid"]) if is_study else [loaded]:
        try:
            recipes.append(check(run))
        except RecipeError as error:
            problems += error.problems
    baseline = (study.get("table") or {}).get("baseline")
    labels = list(dict.fromkeys(one["name"].removeprefix(f"{_name(loaded)}/") for one in recipes))
    if baseline and not problems and baseline not in labels:
        said = f"must be a row of the study, got {baseline!r}.{did_you_mean(baseline, labels)}"
        problems.append(Problem("table.baseline", said, loaded.origin("table.baseline")))
    axes = tuple((study.get("grid") or {}).get("axes") or ())
    average = (study.get("table") or {}).get("average")
    if average and average not in axes:
        said = f"must be an axis of the study, got {average!r}.{did_you_mean(average, axes)}"
        problems.append(Problem("table.average", said, loaded.origin("table.average")))
    if problems:
        raise RecipeError(problems)
    return Plan(_name(loaded), recipes, is_study, axes, study.get("table") or {}, study.get("plot"))


def coordinates(wanted: Plan) -> dict[str, dict[str, Any]]:
    """Where each row of a study stands in its grid: {row: {"variant": ..., axis: value, ...}}."""
    found = {}
    for recipe in wanted.recipes:
        label = str(recipe["name"]).removeprefix(f"{wanted.name}/")
        values = {axis: _at(recipe, axis) for axis in wanted.axes}
        variant = label.split("/")[: -len(wanted.axes) or None]
        found[label] = {"variant": "/".join(variant), **values}
    return found


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _name(loaded: Loaded) -> str:
    return str(loaded.tree.get("name", "unnamed"))


def _study_problems(study: Mapping[str, Any], loaded: Loaded) -> list[Problem]:
    problems = _overridden_grid(study.get("grid"), loaded)
    shapes = {"grid": _GRID, "table": _TABLE, "plot": _PLOT}
    if "grid" not in study:
        return [Problem(key, "only a study, a recipe with `grid`, has one", loaded.origin(key)) for key in study]
    grid = study["grid"]
    columns = (*COLUMNS, *_transfers(_at(loaded.tree, "evaluation.transfer")))
    places = ["variant", *((grid.get("axes") or {}) if isinstance(grid, Mapping) else ())]
    for section, value in study.items():
        known = shapes[section]
        if not isinstance(value, Mapping):
            problems.append(Problem(section, f"must be a mapping of keys, got {value!r}", loaded.origin(section)))
            continue
        for key, item in value.items():
            where = f"{section}.{key}"
            if key not in known:
                said = f"unknown key.{did_you_mean(key, known)} Allowed: {', '.join(known)}"
                problems.append(Problem(where, said, loaded.origin(where)))
            elif wrong := mistake(known[key], item):
                problems.append(Problem(where, wrong, loaded.origin(where)))
            elif not item and section == "grid":
                problems.append(Problem(where, "must not be empty", loaded.origin(where)))
            elif key == "axes":
                empty = [f"{where}.{axis}" for axis, values in item.items() if not values]
                problems += [Problem(axis, "must not be empty", loaded.origin(where)) for axis in empty]
            elif key == "seeds" and len(set(item)) < len(item):
                problems.append(Problem(where, f"must differ from one another, got {item}", loaded.origin(where)))
        if section == "plot":
            problems += [Problem(f"plot.{key}", "missing; give a value") for key in ("x", "y") if key not in value]
        problems += [
            Problem(f"{section}.{key}", _unknown_column(column, columns), loaded.origin(f"{section}.{key}"))
            for key in ("columns", "sort", "score", "x", "y", "by", "each")
            for column in _words(value.get(key))
            if section != "grid" and column not in columns and (section, key, column) != ("plot", "x", "epoch")
            if not (section == "plot" and key in ("x", "by", "each") and column in places)
        ]
    return problems


def _words(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def _unknown_column(column: str, columns: Sequence[str]) -> str:
    return f"unknown table column {column!r}.{did_you_mean(column, columns)} Available: {', '.join(columns)}"


def _transfers(sections: Any) -> list[str]:
    """The columns of the datasets that a recipe transfers to."""
    named = [one.get("name") if isinstance(one, Mapping) else one for one in sections or ()]
    return [f"transfer_{name}" for name in named]


def _overridden_grid(grid: Any, loaded: Loaded) -> list[Problem]:
    """The command line cannot fix what the grid varies: one of the two would be ignored."""
    if not isinstance(grid, Mapping):
        return []
    varied = {str(axis): f"grid.axes.{axis}" for axis in grid.get("axes") or {}}
    if grid.get("seeds"):
        varied["seed"] = "grid.seeds"
    return [
        Problem(key, f"the study varies it; set {varied[key]} to a list of one value instead", loaded.origin(key))
        for key in loaded.named
        if key in varied
    ]


def _expand(loaded: Loaded, grid: Mapping[str, Any]) -> Iterator[Loaded]:
    """Variants, then axes, then seeds; a run is named after the choices that made it."""
    variants = grid.get("variants") or {"": {}}
    axes = grid.get("axes") or {}
    seeds = grid.get("seeds") or [loaded.tree.get("seed", 0)]
    for (variant, overrides), values in itertools.product(variants.items(), itertools.product(*axes.values())):
        chosen = dict(zip(axes, values, strict=True))
        tree = merge(loaded.tree, undotted(overrides or {}))
        for change in (loaded.changes, *(nested(key, value) for key, value in chosen.items())):
            tree = merge(tree, {key: value for key, value in change.items() if key not in STUDY_KEYS})
        label = "/".join([variant, *(_label(value) for value in values)]).strip("/")
        tree["name"] = f"{_name(loaded)}/{label}" if label else _name(loaded)
        origins = dict(loaded.origins)
        source = loaded.origin("grid")
        for key in (*undotted(overrides or {}), *chosen):
            origins[key] = f"{source} (grid, {label})"
        for seed in seeds:
            yield replace(loaded, tree=tree | {"seed": seed}, origins=origins)


def _label(value: Any) -> str:
    if isinstance(value, Mapping):
        words = [str(v) if k == "name" else f"{k}={v}" for k, v in value.items()]
        return "-".join(words).replace("/", "-")
    return str(value).replace("/", "-")
