"""New components are covered without a change to the contracts."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.contracts.plugged import KINDS

ROOT = Path(__file__).resolve().parents[2]


def test_components_of_plug_ins_meet_every_contract() -> None:
    """In a new process, in which a plug-in adds a component of each kind before the contracts are collected."""
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.contracts.plugged", "-k", "plugged"]
    pytest_run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests/contracts"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert pytest_run.returncode == 0, pytest_run.stdout + pytest_run.stderr
    passed = re.search(r"(\d+) passed", pytest_run.stdout)
    assert passed is not None, pytest_run.stdout
    contracts = {kind: len(importlib.import_module(f"tests.contracts.test_{kind}").CONTRACTS) for kind in KINDS}
    assert int(passed[1]) == sum(contracts.values()), f"{passed[0]}, contracts by kind: {contracts}"


def test_every_kind_with_contracts_has_a_plug_in_here() -> None:
    modules = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert modules - {"plugins", "suites"} == set(KINDS)
