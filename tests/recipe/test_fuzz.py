"""Recipes with random values: they are valid, or refused in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from imbalance_vlm.errors import InputError
from imbalance_vlm.recipe.load import parse_override
from imbalance_vlm.recipe.study import plan

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

NUMBERS = st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**400, 1e-308, 1e308, -0.0, math.inf, math.nan, 0.5])
WORDS = st.sampled_from(
    ["", ".", "..", "~no_such_user", "a\0b", "x" * 300, "\ud800", "\x1b[2J", "focal", "a.b", "1e-3", "true"]
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.dates(), st.binary(max_size=3))
KEYS = st.one_of(
    WORDS, st.sampled_from(["name", "method", "lr", "axes", "seeds"]), st.integers(0, 3), st.none(), st.booleans()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)

BASE = {
    "name": "fuzz",
    "data": {"name": "icons_lt"},
    "encoder": {"name": "mini-clip", "pretrained": "icons-large"},
    "tuning": {"name": "linear_probe"},
    "head": {"name": "cosine"},
    "balancing": {"loss": {"name": "logit_adjustment"}, "regularizers": [], "post_hoc": None},
    "training": {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1}, "schedule": "cosine"},
    "evaluation": {"groups": {"many": 100, "few": 20}},
}
STUDY = BASE | {
    "grid": {"variants": {"a": {}}, "axes": {"training.epochs": [1, 2]}, "seeds": [0]},
    "table": {"columns": ["recipe", "overall"]},
    "plot": {"x": "training.epochs", "y": ["overall"], "title": "t"},
}


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*path, key))


def check(recipe: Any, overrides: Any = None) -> None:
    with suppress(InputError):
        plan(recipe, overrides)


@FEW
@given(
    st.sampled_from([BASE, STUDY]).flatmap(lambda base: st.tuples(st.just(base), st.sampled_from([*places(base)][1:]))),
    VALUES,
)
def test_any_value_at_any_place_is_valid_or_refused(where: tuple[dict[str, Any], tuple[Any, ...]], value: Any) -> None:
    base, (*path, last) = where
    recipe = deepcopy(base)
    part: Any = recipe
    for key in path:
        part = part[key]
    part[last] = value
    check(recipe)


@FEW
@given(st.sampled_from([".".join(map(str, path)) for path in [*places(STUDY)][1:]]), VALUES)
def test_any_override_is_valid_or_refused(key: str, value: Any) -> None:
    check(BASE, {key: value})


@FEW
@given(
    st.sampled_from(["seed", "training.optimizer.lr", "name", "grid.axes.seed", "a" * 300, "."]), st.text(max_size=30)
)
def test_any_text_on_the_command_line_is_valid_or_refused(key: str, text: str) -> None:
    with suppress(InputError):
        plan(BASE, dict([parse_override(f"{key}={text}")]))


@settings(FEW, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_valid_or_refused(data: Any, tmp_path: Path) -> None:
    text = yaml.safe_dump(STUDY)
    cut = data.draw(st.integers(0, len(text)))
    inserted = data.draw(
        st.one_of(st.text(max_size=5), st.sampled_from(["&a ", "*a", "<<: ", "!!int ", "!!timestamp x", "? ", "- "]))
    )
    (tmp_path / "damaged.yaml").write_bytes((text[:cut] + inserted + text[cut:]).encode("utf-8", "surrogatepass"))
    check(tmp_path / "damaged.yaml")
