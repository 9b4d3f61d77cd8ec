"""Keep how far ours is from each record: python -m tests.parity.measure writes tests/parity/measured.json."""

from __future__ import annotations

from pathlib import Path

import pytest

from imbalance_vlm.files import write_json
from tests.parity.replay import MEASURED

FILE = Path(__file__).parent / "measured.json"


def main() -> int:
    """Replay every record, then write its differences; 1 when a replay fails, and nothing is written."""
    failed = pytest.main([str(FILE.parent), "-q", "-n", "0", "--deselect", "tests/parity/test_records.py"])
    if failed:
        return 1
    kept: dict[str, dict[str, float]] = {}
    for (record, case), difference in sorted(MEASURED.items()):
        kept.setdefault(record, {})[case] = float(f"{difference:.1e}")
    write_json(FILE, kept)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
