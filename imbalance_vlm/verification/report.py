"""What was found, in words, as a plot and as files."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically, write_json, write_text
from imbalance_vlm.progress import note
from imbalance_vlm.verification.verify import KINDS, SHOWN, Verification


def splits_table(found: Verification) -> pd.DataFrame:
    """A row for each split: images, classes that have any, largest, smallest and largest over smallest of those."""
    rows = []
    for split, counts in found.counts.items():
        there = counts[counts > 0]
        row: dict[str, Any] = {"split": split, "images": int(counts.sum()), "classes": len(there)}
        if len(there):
            row |= {"largest": int(there.max()), "smallest": int(there.min())}
            row["max/min"] = f"{there.max() / there.min():.4g}"
        rows.append(row)
    return pd.DataFrame(rows)


def groups_line(found: Verification) -> str:
    """How many classes are many, medium and few; a group without classes has "none"."""
    if not found.groups:
        return ""
    many, few = found.thresholds
    rules = {"many": f"> {many}", "medium": f"{few} to {many}", "few": f"< {few}"}
    parts = [f"{group} ({rules[group]}) {_classes(len(labels))}" for group, labels in found.groups.items()]
    return f"groups by images in '{next(iter(found.counts))}': {', '.join(parts)}"


def _classes(count: int) -> str:
    return "none" if not count else "1 class" if count == 1 else f"{count:,} classes"


def text(found: Verification) -> str:
    """The report for a terminal."""
    total = sum(int(counts.sum()) for counts in found.counts.values())
    lines = [f"{found.source}: {total:,} images of {len(found.class_names):,} classes", ""]
    lines += _aligned(splits_table(found))
    lines += ["", groups_line(found)] if found.groups else []
    if found.published is not None:
        lines += ["", f"published counts of {found.published_as}:"]
        lines += _aligned(_published(found.published))
    lines += ["", *(f"note: {said}" for said in found.notes)] if found.notes else []
    lines += ["", f"findings: {len(found.findings):,}" if not found.ok else "findings: none"]
    for kind, count in found.tally.items():
        lines.append(f"  {kind}: {count:,} ({KINDS[kind]})")
        chosen = found.findings[found.findings["kind"] == kind]
        lines += [f"    {_line(row)}" for row in chosen.head(SHOWN).to_dict("records")]
        lines += [f"    ... and {count - SHOWN:,} more"] if count > SHOWN else []
    return "\n".join(lines) + "\n"


def markdown(found: Verification) -> str:
    """The report as a page."""
    from imbalance_vlm.results.tables import markdown as table

    lines = [f"# {found.name}", "", f"`{found.source}`, {len(found.class_names):,} classes.", ""]
    lines += [table(splits_table(found)), groups_line(found), ""]
    if found.published is not None:
        lines += [f"## Beside the published counts of {found.published_as}", "", table(_published(found.published))]
    lines += [f"- {said}" for said in found.notes]
    lines += ["", "## Findings", ""]
    if found.ok:
        return "\n".join([*lines, "None."]) + "\n"
    tally = [{"kind": kind, "findings": count, "what it means": KINDS[kind]} for kind, count in found.tally.items()]
    lines += [table(pd.DataFrame(tally)), "All of them are in findings.csv; the first of each kind:", ""]
    for kind in found.tally:
        chosen = found.findings[found.findings["kind"] == kind].head(SHOWN)
        lines += [f"- {kind}: {_line(row)}" for row in chosen.to_dict("records")]
    return "\n".join(lines) + "\n"


def as_json(found: Verification) -> dict[str, Any]:
    """The report as plain values."""
    splits = splits_table(found).to_dict("records")
    return {
        "name": found.name,
        "source": found.source,
        "ok": found.ok,
        "num_classes": len(found.class_names),
        "splits": [{key: value for key, value in row.items() if not pd.isna(value)} for row in splits],
        "groups": {group: len(labels) or None for group, labels in found.groups.items()},
        "thresholds": {"many": found.thresholds[0], "few": found.thresholds[1]},
        "published": None if found.published is None else found.published.to_dict("records"),
        "published_as": found.published_as or None,
        "notes": list(found.notes),
        "findings": found.tally,
        "classes": [
            {"name": name, **{split: int(counts[label]) for split, counts in found.counts.items()}}
            for label, name in enumerate(found.class_names)
        ],
    }


def save(found: Verification, folder: Path) -> None:
    """Write report.md, report.json, findings.csv, classes.csv and, where matplotlib is installed, classes.png."""
    content = as_json(found)
    write_text(folder / "report.md", markdown(found))
    write_json(folder / "report.json", content)
    write_text(folder / "findings.csv", found.findings.to_csv(index=False))
    write_text(folder / "classes.csv", pd.DataFrame(content["classes"]).to_csv(index=False))
    try:
        plot(found, folder / "classes.png")
    except InputError as error:
        note(f"no plot: {error}")


def plot(found: Verification, path: Path) -> None:
    """Images of each class, by size; the limits of the groups are drawn in.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'imbalance_vlm[plot]'") from error
    main = next(iter(found.counts.values()))
    order = (-main).argsort(kind="stable")
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    places = range(1, len(order) + 1)
    for split, counts in reversed(list(found.counts.items())):
        values = [float(count) if count else float("nan") for count in counts[order]]
        first = counts is main
        axis.plot(places, values, label=split, lw=2 if first else 0, marker="" if first else ".", ms=3)
    for threshold in found.thresholds:
        axis.axhline(threshold, color="0.6", lw=0.8, ls=":")
    if max(int(counts.max(initial=0)) for counts in found.counts.values()):
        axis.set_yscale("log")
    axis.set_xlabel(f"classes, by images in '{next(iter(found.counts))}'")
    axis.set_ylabel("images")
    axis.set_title(found.name)
    axis.grid(alpha=0.3)
    axis.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))


def outside(place: Path, collection_roots: tuple[Path, ...], what: str) -> Path:
    """`place`, unless it lies in the user's data.

    Raises:
        InputError: it does.
    """
    resolved = place.expanduser().resolve()
    for root in collection_roots:
        if resolved.is_relative_to(root.resolve()):
            raise InputError(
                f"`{what}` must lie outside of the data, into which nothing is written; got {place}, in {root}"
            )
    return place.expanduser()


def _published(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for fact, said, here, checked, agrees in table.itertuples(index=False):
        rows.append(
            {
                "fact": fact,
                "published": f"{said:,}{'' if checked else ' [check]'}",
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
    """A finding in a line."""
    named = row["path"] or "/".join(part for part in (row["split"], row["class"]) if part)
    other = f" -> {row['other']}" if row["other"] else ""
    return f"{named}{other}{f' ({detail})' if (detail := row['detail']) else ''}"
