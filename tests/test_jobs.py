"""A study in several processes: the same results as in one."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm import InputError, run
from imbalance_vlm.data.folder import FolderReader
from imbalance_vlm.results.result import StudyResult

GRID = {"grid": {"seeds": [0, 1]}}


def test_two_processes_give_what_one_gives(recipe: dict[str, Any]) -> None:
    one = run(recipe | GRID, {"training.epochs": 2}, runs="one")
    two = run(recipe | GRID, {"training.epochs": 2}, runs="two", jobs=2)
    assert isinstance(one, StudyResult)
    assert isinstance(two, StudyResult)
    for name, scores in one.scores.items():
        assert two.scores[name] == pytest.approx(scores, nan_ok=True)
    assert [r.path.name for r in two.runs] == [r.path.name for r in one.runs]


def test_a_mistake_in_a_process_is_the_study_s(recipe: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="chooses a setting on validation images"):
        run(recipe | GRID, {"balancing.post_hoc": "logit_adjustment"}, jobs=2)


def test_less_than_one_process_is_refused(recipe: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="`jobs` must be at least 1, got 0"):
        run(recipe | GRID, jobs=0)


def test_a_study_lists_its_files_once(recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    identity = FolderReader.identity

    def counted(self: FolderReader) -> str:
        listed.append(str(self.root))
        return identity(self)

    monkeypatch.setattr(FolderReader, "identity", counted)
    run(recipe | GRID, {"training.epochs": 1})
    assert len(listed) == 1
    run(recipe | GRID, {"training.epochs": 1})
    assert len(listed) == 2, "another call looks again: files may have changed"
