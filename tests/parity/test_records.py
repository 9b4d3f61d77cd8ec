"""Every record is replayed, and its difference is kept for docs/parity.md."""

from __future__ import annotations

import json

from tests.parity.measure import FILE
from tests.parity.replay import RECORDS, TOLERANCE, record_of

REMEDY = "run python -m tests.parity.measure, then python tools/docs.py"


def test_every_case_was_measured() -> None:
    measured = json.loads(FILE.read_text())
    recorded = {path.stem: set(record_of(path.stem)["runs"]) for path in RECORDS.glob("*.json")}
    assert {name: set(cases) for name, cases in measured.items()} == recorded, REMEDY


def test_measured_differences_are_within_the_tolerance_unless_a_record_says_otherwise() -> None:
    for name, cases in json.loads(FILE.read_text()).items():
        runs = record_of(name)["runs"]
        for case, difference in cases.items():
            assert (difference > TOLERANCE) == ("differs" in runs[case]), f"{name}, {case}: {REMEDY}"


def test_records_are_small_and_name_their_source() -> None:
    for path in RECORDS.glob("*.json"):
        record = record_of(path.stem)
        assert path.stat().st_size < 100_000, path.name
        assert len(record["commit"]) == 40, path.name
        assert record["repository"].startswith("https://github.com/")
        assert record["file"]
        assert record["changes"]
