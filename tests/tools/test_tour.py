"""The notebook on docs/tour.ipynb: it runs from top to bottom, and its kept outputs show no machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))


def test_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """In a process of its own: jupyter_client warns about things that are none of this project's."""
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from tools.docs import NOTEBOOK, executed
executed(NOTEBOOK)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_outputs_are_kept_and_name_no_folder() -> None:
    outputs = [output for cell in NOTEBOOK["cells"] for output in cell.get("outputs", [])]
    kinds = [kind for output in outputs for kind in output.get("data", ())]
    assert kinds.count("image/png") == 4
    assert not re.search(r"/(home|root|tmp|work|Users)/", json.dumps(outputs))
