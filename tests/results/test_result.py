"""Results on disk: what is read, what is found, what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm.errors import InputError
from imbalance_vlm.results.result import find_results, read_result
from tests.results.test_tables import run


def written(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True)
    record = {"schema": 1, "classes": {}, **run(40.0).record, **changes}
    (folder / "result.json").write_text(
        json.dumps({key: value for key, value in record.items() if value != "left out"})
    )
    return folder


def test_a_result_is_read_with_its_scores_and_table(tmp_path: Path) -> None:
    result = read_result(written(tmp_path / "run"))
    assert result is not None
    assert result.scores["overall"] == 40
    assert math.isnan(result.scores["few"])
    assert result.table["overall"].tolist() == [40]
    assert result.path == tmp_path / "run"


def test_a_folder_without_a_result_is_not_finished(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None


def test_results_are_found_below_folders_and_by_their_file(tmp_path: Path) -> None:
    second, first = written(tmp_path / "b" / "c"), written(tmp_path / "a")
    assert [result.path for result in find_results([tmp_path])] == [first, second]
    assert [result.path for result in find_results([second / "result.json"])] == [second]


def test_a_run_that_is_named_twice_counts_once(tmp_path: Path) -> None:
    folder = written(tmp_path / "a" / "run")
    (tmp_path / "link").symlink_to(folder)
    places = [folder, tmp_path / "a", folder / "result.json", tmp_path / "link", tmp_path / "a" / ".." / "a"]
    assert [result.path for result in find_results(places)] == [folder]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 0}, "must be a result of schema 1.*--force"),
        ({"scores": "left out"}, "has no 'scores'.*--force"),
        ({"scores": {"overall": "high"}}, "has a wrong 'scores'"),
        ({"seed": 10**400}, "has a wrong 'seed'"),
        ({"identity": []}, "has a wrong 'identity'"),
        ({"identity": {}}, "has no 'recipe'"),
        ({"columns": [{"digits": 1}]}, "has a wrong 'columns'"),
        ({"columns": 3}, "has a wrong 'columns'"),
        ({"cost": None}, "has a wrong 'cost'"),
    ],
)
def test_a_result_of_another_kind_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_result(written(tmp_path / "run", **changes))


def test_a_damaged_result_and_places_without_results_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "run")
    (folder / "result.json").write_text("{")
    with pytest.raises(InputError, match=f"{re.escape(str(folder))}.*must hold JSON.*run again with --force"):
        read_result(folder)
    (folder / "result.json").write_text("[1, 2]")
    with pytest.raises(InputError, match=r"must be a mapping, got .*--force"):
        read_result(folder)
    with pytest.raises(InputError, match="no such run or folder"):
        find_results([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no result\.json below"):
        find_results([tmp_path / "empty"])
