"""What a verification reports: findings, each of one kind, and the counts of the dataset."""

from __future__ import annotations

from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

KINDS = {
    "missing": "listed, but the file does not exist",
    "zero_byte": "a file without content",
    "truncated": "the image ends too early: the file was copied or downloaded in part",
    "unreadable": "cannot be opened or decoded",
    "bomb": "too large, once unpacked, to be opened safely",
    "path_traversal": "a name in an archive that leads out of the folder it is unpacked in",
    "link": "a link in an archive, which may point anywhere",
    "special_file": "a device or a pipe in an archive",
    "repeated_name": "a name that an archive holds twice",
    "damaged_archive": "an archive that ends too early",
    "no_class": "an image outside of all class folders",
    "empty_class": "a class without an image to train on",
    "published": "a number that differs from the published one",
    "leak": "the same bytes in two splits",
    "near_leak": "nearly the same image in two splits",
    "label_conflict": "the same bytes under two classes",
    "duplicate": "the same bytes twice in one split",
    "near_duplicate": "nearly the same image twice in one split",
    "label_suspect": "all nearest neighbours in training are of one other class",
}
"""The kinds of findings, the worst first."""
COLUMNS = ["kind", "split", "class", "path", "other", "detail"]


@dataclass(frozen=True)
class Finding:
    """One problem; the fields are the columns of `COLUMNS`.

    Args:
        kind: a key of `KINDS`.
        split: of the image or class.
        class_name: of the image, or the class itself.
        path: the image, folder, archive member or fact.
        other: the image it is a copy of, or the class it seems to belong to.
        detail: a clause that explains it.
    """

    kind: str
    split: str = ""
    class_name: str = ""
    path: str = ""
    other: str = ""
    detail: str = ""


def findings_table(findings: Iterable[Finding], ignore: Container[str] = ()) -> pd.DataFrame:
    """One row per finding, by kind, the worst first; kinds in `ignore` are left out."""
    rows = [astuple(finding) for finding in findings if finding.kind not in ignore]
    table = pd.DataFrame(rows, columns=COLUMNS, dtype=object)
    order = list(KINDS)
    return table.sort_values("kind", key=lambda kinds: kinds.map(order.index), kind="stable", ignore_index=True)


@dataclass(frozen=True)
class Verification:
    """The report on a dataset.

    Args:
        name: of the dataset.
        source: as the user named it.
        class_names: (C,) names.
        counts: (C,) listed images of each class, by split.
        findings: one row per finding, with the columns of `COLUMNS`.
        groups: class labels of many, medium and few, by the thresholds.
        thresholds: many classes have more images than the first, few classes fewer than the second.
        published: the published facts of a benchmark, compared with the dataset; None where there are none.
        published_as: the benchmark.
        notes: sentences for the reader of the report.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    counts: Mapping[str, NDArray[np.int64]]
    findings: pd.DataFrame
    groups: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    thresholds: tuple[int, int] = (100, 20)
    published: pd.DataFrame | None = None
    published_as: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there are no findings."""
        return self.findings.empty

    @property
    def tally(self) -> dict[str, int]:
        """The number of findings of each kind that occurs, the worst first."""
        counts = self.findings["kind"].value_counts()
        return {kind: int(counts[kind]) for kind in KINDS if kind in counts.index}
