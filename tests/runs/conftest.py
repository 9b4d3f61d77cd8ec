"""What the tests of runs share."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.results.result import RunResult
from imbalance_vlm.runs import study


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names and seeds of the runs that were computed, not read."""
    names: list[str] = []
    run_recipe = study.run_recipe

    def counted(recipe: dict[str, Any], *rest: Any) -> RunResult:
        names.append(f"{recipe['name']} {recipe['seed']}")
        return run_recipe(recipe, *rest)

    monkeypatch.setattr(study, "run_recipe", counted)
    return names
