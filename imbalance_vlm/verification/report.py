"""The report of a verification as text, as a page, as a plot and as files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from imbalance_vlm import escapes
from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically, write_json, write_text
from imbalance_vlm.progress import note
from imbalance_vlm.results.tables import csv as csv_table
from imbalance_vlm.results.tables import markdown as markdown_table
from imbalance_vlm.verification.findings import KINDS, Verification

SHOWN = 5
"""Findings of each kind that are printed."""


def splits_table(report: Verification) -> pd.DataFrame:
    """One row per split: images, classes that have any, largest, smallest, and largest over smallest of those."""
    rows = []
    for split, counts in report.counts.items():
        positive = counts[counts > 0]
        row: dict[str, Any] = {"split": split, "images": int(counts.sum()), "classes": len(positive)}
        if len(positive):
            row |= {"largest": int(positive.max()), "smallest": int(positive.min())}
            row["max/min"] = f"{positive.max() / positive.min():.4g}"
        rows.append(row)
    return pd.DataFrame(rows)


def groups_line(report: Verification) -> str:
    """The number of many, medium and few classes in one line; "none" for a group without classes."""
    if not report.groups:
        return ""
    many, few = report.thresholds
    rules = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}
    parts = [f"{group} ({rules[group]}) {_classes(len(labels))}" for group, labels in report.groups.items()]
    return f"groups by images in '{next(iter(report.counts))}': {', '.join(parts)}"


def _classes(count: int) -> str:
    return "none" if not count else "1 class" if count == 1 else f"{count:,} classes"


def text(report: Verification) -> str:
    """The report for a terminal."""
    total = sum(int(counts.sum()) for counts in report.counts.values())
    lines = [f"{escapes.visible(str(report.source))}: {total:,} images of {len(report.class_names):,} classes", ""]
    lines += _aligned(splits_table(report))
    lines += ["", groups_line(report)] if report.groups else []
    if report.published is not None:
        lines += ["", f"published counts of {report.published_as}:"]
        lines += _aligned(_published(report.published))
    lines += ["", *(f"note: {escapes.visible(sentence)}" for sentence in report.notes)] if report.notes else []
    lines += ["", f"findings: {len(report.findings):,}" if not report.ok else "findings: none"]
    for kind, count in report.tally.items():
        lines.append(f"  {kind}: {count:,} ({KINDS[kind]})")
        chosen = report.findings[report.findings["kind"] == kind]
        lines += [f"    {escapes.visible(_line(row))}" for row in chosen.head(SHOWN).to_dict("records")]
        lines += [f"    ... and {count - SHOWN:,} more"] if count > SHOWN else []
    return "\n".join(lines) + "\n"


def markdown(report: Verification) -> str:
    """The report as a page."""
    name, source = escapes.markdown(report.name), escapes.markdown(str(report.source))
    lines = [f"# {name}", "", f"{source}, {len(report.class_names):,} classes.", ""]
    lines += [markdown_table(splits_table(report)), groups_line(report), ""]
    if report.published is not None:
        lines += [
            f"## Compared with the published counts of {report.published_as}",
            "",
            markdown_table(_published(report.published)),
        ]
    lines += [f"- {escapes.markdown(sentence)}" for sentence in report.notes]
    lines += ["", "## Findings", ""]
    if report.ok:
        return "\n".join([*lines, "None."]) + "\n"
    tally = [{"kind": kind, "findings": count, "what it means": KINDS[kind]} for kind, count in report.tally.items()]
    lines += [markdown_table(pd.DataFrame(tally)), "All of them are in findings.csv; the first of each kind:", ""]
    for kind in report.tally:
        chosen = report.findings[report.findings["kind"] == kind].head(SHOWN)
        lines += [f"- {kind}: {escapes.markdown(_line(row))}" for row in chosen.to_dict("records")]
    return "\n".join(lines) + "\n"


def as_json(report: Verification) -> dict[str, Any]:
    """The report as plain values."""
    splits = splits_table(report).to_dict("records")
    return {
        "name": report.name,
        "source": report.source,
        "ok": report.ok,
        "num_classes": len(report.class_names),
        "splits": [{key: value for key, value in row.items() if not pd.isna(value)} for row in splits],
        "groups": {group: len(labels) or None for group, labels in report.groups.items()},
        "thresholds": {"many": report.thresholds[0], "few": report.thresholds[1]},
        "published": None if report.published is None else report.published.to_dict("records"),
        "published_as": report.published_as or None,
        "notes": list(report.notes),
        "findings": report.tally,
        "classes": [
            {"name": name, **{split: int(counts[label]) for split, counts in report.counts.items()}}
            for label, name in enumerate(report.class_names)
        ],
    }


def save(report: Verification, folder: Path) -> None:
    """Write report.md, report.json, findings.csv, classes.csv and, if matplotlib is installed, classes.png."""
    content = as_json(report)
    write_text(folder / "report.md", markdown(report))
    write_json(folder / "report.json", content)
    write_text(folder / "findings.csv", csv_table(report.findings))
    write_text(folder / "classes.csv", csv_table(pd.DataFrame(content["classes"])))
    try:
        plot(report, folder / "classes.png")
    except InputError as error:
        note(f"no plot: {error}")


def plot(report: Verification, path: Path) -> None:
    """Plot the number of images of each class, by size, with the thresholds of the groups.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'imbalance_vlm[plot]'") from error
    main = next(iter(report.counts.values()))
    order = (-main).argsort(kind="stable")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    places = range(1, len(order) + 1)
    for split, counts in reversed(list(report.counts.items())):
        values = [float(count) if count else float("nan") for count in counts[order]]
        first = counts is main
        axis.plot(places, values, label=split, lw=2 if first else 0, marker="" if first else ".", ms=3)
    for threshold in report.thresholds:
        axis.axhline(threshold, color="0.6", lw=0.8, ls=":")
    if max(int(counts.max(initial=0)) for counts in report.counts.values()):
        axis.set_yscale("log")
    axis.set_xlabel(f"classes, by images in '{next(iter(report.counts))}'")
    axis.set_ylabel("images")
    axis.set_title(escapes.mathtext(report.name))
    axis.grid(alpha=0.3)
    axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))


def outside(path: Path, roots: Sequence[Path], argument: str) -> Path:
    """The path of an output, expanded, if it lies outside of the user's data.

    Args:
        path: of the output.
        roots: folders of the user's data.
        argument: its name in the message.

    Raises:
        InputError: it lies in the user's data.
    """
    resolved = path.expanduser().resolve()
    for root in roots:
        if resolved.is_relative_to(root.resolve()):
            raise InputError(
                f"`{argument}` must lie outside of the data, into which nothing is written; got {path}, in {root}"
            )
    return path.expanduser()


def _published(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for fact, published, here, checked, agrees in table.itertuples(index=False):
        rows.append(
            {
                "fact": fact,
                "published": f"{published:,}{'' if checked else ' [check]'}",
                "here": "none" if pd.isna(here) else f"{int(here):,}",
                "agrees": "yes" if agrees else "NO" if checked else "no, from a figure to be checked",
            }
        )
    return pd.DataFrame(rows)


def _aligned(table: pd.DataFrame) -> list[str]:
    words = [list(table.columns), *([_word(value) for value in row] for row in table.itertuples(index=False))]
    widths = [max(len(row[column]) for row in words) for column in range(len(table.columns))]
    return [
        "  " + "  ".join(w.ljust(n) if c == 0 else w.rjust(n) for c, (w, n) in enumerate(zip(row, widths, strict=True)))
        for row in words
    ]


def _word(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if pd.isna(value) else f"{int(value):,}"


def _line(row: Mapping[Hashable, Any]) -> str:
    """A finding in one line."""
    subject = row["path"] or "/".join(part for part in (row["split"], row["class"]) if part)
    other = f" -> {row['other']}" if row["other"] else ""
    return f"{subject}{other}{f' ({detail})' if (detail := row['detail']) else ''}"
