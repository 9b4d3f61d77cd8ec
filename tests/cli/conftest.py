"""A recipe in a file, and finished runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from imbalance_vlm.cli.main import main


@pytest.fixture
def recipe_file(recipe: dict[str, Any], tmp_path: Path) -> str:
    """A linear probe of one epoch."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe | {"training": {"epochs": 1}}))
    return str(path)


@pytest.fixture
def finished(recipe_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two finished runs under runs/."""
    assert main(["run", recipe_file]) == 0
    assert main(["run", recipe_file, "seed=1", "head=cosine"]) == 0
    capsys.readouterr()
