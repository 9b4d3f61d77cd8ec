"""Which runs are the same: the hash that names a run's folder, and the hash of the runs that share a table row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from imbalance_vlm.components.ranges import ComputeOnly
from imbalance_vlm.data.prepare import with_draw_seed
from imbalance_vlm.recipe.schema import datasets_in, settings_in
from imbalance_vlm.runs.resources import Resources

NUMERICS_VERSION = 2
"""Raised whenever the same recipe gives other numbers than before: a changed default, formula or order of draws.
Finished runs of an earlier version are then run again, and are not averaged with those of a later one."""

_LABELS = ("name", "description", "paper")
"""Keys that do not change a result."""


def core(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a complete recipe depend on.

    Labels are left out, and so are settings that only decide how the numbers are computed (`ComputeOnly`). Settings at
    their defaults are left out too: a setting that is added later leaves finished runs as they are.
    """
    tree: dict[str, Any] = deepcopy({key: value for key, value in recipe.items() if key not in _LABELS})
    for key, setting, value in settings_in(recipe):
        if setting.marked(ComputeOnly) or setting.is_default(value):
            _remove(tree, key)
    return tree


def _remove(tree: Any, key: str) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree[int(part)] if isinstance(tree, list) else tree[part]
    tree.pop(last, None)


def recipe_hash(recipe: Mapping[str, Any], resources: Resources) -> str:
    """SHA-256 of everything that the numbers depend on: the recipe, its data, its weights and `NUMERICS_VERSION`.

    The code is not part of it: after changing a component, run with --force.
    """
    datasets = [resources.dataset_identity(with_draw_seed(section, recipe["seed"])) for section in datasets_in(recipe)]
    return _hash(core(recipe), *datasets, resources.encoder_identity(recipe["encoder"]))


def config_hash(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of everything that the runs of one configuration share: the recipe without its seed."""
    return _hash(core(recipe) | {"seed": None})


def _hash(tree: Mapping[str, Any], *identities: str) -> str:
    parts = [json.dumps(tree, sort_keys=True, default=str), *identities, f"numerics {NUMERICS_VERSION}"]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def run_folder(root: Path, recipe: Mapping[str, Any], resources: Resources) -> Path:
    """`root/<recipe name>/seed<seed>-<hash>`: a recipe that differs in anything has another folder."""
    name = re.sub(r'[\\:*?"<>|]', "-", recipe["name"])  # characters that some file systems refuse
    return root / name / f"seed{recipe['seed']}-{recipe_hash(recipe, resources)[:16]}"
