"""Plots of tables. matplotlib comes with the extra `plot` and is imported only here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from imbalance_vlm.errors import InputError
from imbalance_vlm.files import write_atomically


def plot(
    frame: pd.DataFrame,
    path: Path,
    *,
    x: str,
    y: list[str],
    by: str | None = None,
    each: str | None = None,
    log_x: bool = False,
    lines: bool = True,
    title: str = "",
    x_label: str = "",
    y_label: str = "accuracy (%)",
) -> None:
    """Plot columns `y` against column `x`, with error bars where the table has deviations.

    Args:
        frame: a table.
        path: of the image to write.
        x, y: names of columns; each of `y` is a line.
        by: a column, each of whose values has a panel of its own.
        each: a column, each of whose values has lines of its own.
        log_x: a logarithmic horizontal axis.
        lines: join the points; without lines, the legend shows the correlation of x and y (Pearson's r).
        title, x_label, y_label: texts; the horizontal axis is labelled with the name of its column by default.

    Raises:
        InputError: matplotlib is not installed, or a column that the table does not have.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'imbalance_vlm[plot]'") from error
    for column in [x, *y, *(name for name in (by, each) if name)]:
        if column not in frame.columns:
            raise InputError(f"unknown plot column {column!r}; available: {', '.join(map(str, frame.columns))}")
    panels: Sequence[tuple[str, pd.DataFrame]] = (
        [(str(value), group) for value, group in frame.groupby(by, sort=False)] if by else [("", frame)]
    )
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, group) in zip(axes, panels, strict=True):
        curves = [(f"{value}: ", part) for value, part in group.groupby(each, sort=False)] if each else [("", group)]
        for (prefix, curve), column in itertools.product(curves, y):
            ordered = curve.sort_values(x)
            deviation = f"{column}_std"
            spread = ordered[deviation] if deviation in ordered.columns else None
            label = f"{prefix}{column}" + ("" if lines else f", r = {ordered[x].corr(ordered[column]):+.2f}")
            axis.errorbar(
                ordered[x], ordered[column], yerr=spread, marker="o", ls="-" if lines else "", capsize=3, label=label
            )
        if log_x:
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(group[x])))
            axis.xaxis.set_major_formatter(EngFormatter(sep=""))
            axis.minorticks_off()
        axis.set_title(name)
        axis.set_xlabel(x_label or x)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(y_label)
    axes[0].legend()
    if title:
        figure.suptitle(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))
