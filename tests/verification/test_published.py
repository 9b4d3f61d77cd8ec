"""The published sizes of the benchmarks, and which data sections they hold for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imbalance_vlm.components import catalogue
from imbalance_vlm.verification.findings import KINDS
from imbalance_vlm.verification.published import PUBLISHED, Comparison, compare, published_for


@pytest.mark.parametrize(
    ("section", "title", "reason"),
    [
        ({"name": "dtd"}, "dtd", ""),
        ({"name": "cifar100_lt", "imbalance": 50.0}, "cifar100_lt, imbalance 50", ""),
        ({"name": "cifar100_lt", "imbalance": 3}, None, "no published counts of cifar100_lt, imbalance 3 are known"),
        ({"name": "dtd", "shots": 16, "classes": "all"}, None, "the recipe makes another dataset of dtd (shots)"),
        ({"name": "folder", "shots": 16}, None, ""),
    ],
)
def test_the_published_facts_of_a_section(section: dict[str, Any], title: str | None, reason: str) -> None:
    facts, why = published_for(section)
    assert (facts and facts.title, why) == (title, reason)


def test_published_facts_are_of_datasets_that_exist() -> None:
    for facts in PUBLISHED:
        assert facts.dataset in catalogue.DATASETS
        assert set(facts.settings) <= set(catalogue.DATASETS.get(facts.dataset).settings())


def test_a_difference_from_an_unchecked_figure_is_no_finding() -> None:
    facts, _ = published_for({"name": "inat2018"})
    assert facts is not None
    counts = [1000] + [2] * 8141
    rows = compare(facts, {"train": 437_513, "test": 1}, counts, {"many": 1, "medium": 0, "few": 8141})
    findings = Comparison(rows).findings
    assert "many classes" not in {finding.path for finding in findings}
    assert "test images" in {finding.path for finding in findings}
    marks = {fact: (checked, agrees) for fact, _, _, checked, agrees in rows.itertuples(index=False)}
    assert marks["many classes"] == (False, False)
    assert marks["test images"] == (True, False)
    assert marks["train images"] == (True, True)


def test_every_kind_and_every_published_number_is_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for facts in PUBLISHED:
        if facts.groups is not None:
            groups = "/".join(map(str, facts.groups)) + (" [check]" if facts.unchecked else "")
            assert f"| {facts.largest}/{facts.smallest} | {groups} |" in page
            assert all(f"{count:,} |" in page for count in (facts.images or {}).values())
    assert not [kind for kind in KINDS if f"`{kind}`" not in page]
