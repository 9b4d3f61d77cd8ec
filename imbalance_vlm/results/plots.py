"""Plots of tables. matplotlib comes with the extra `plot` and is imported only here."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from imbalance_vlm.errors import InputError
from imbalance_vlm.escapes import mathtext
from imbalance_vlm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
        title, x_label, y_label: texts, with formulas between dollar signs; the horizontal axis is labelled with the
            name of its column by default.

    Raises:
        InputError: matplotlib is not installed, a column that the table does not have, or a broken formula.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise InputError("plots need matplotlib: pip install 'imbalance_vlm[plot]'") from error
    check_formulas(title=title, x_label=x_label, y_label=y_label)
    for column in [x, *y, *(name for name in (by, each) if name)]:
        if column not in frame.columns:
            raise InputError(f"unknown plot column {column!r}; available: {', '.join(map(str, frame.columns))}")
    panels: Sequence[tuple[str, pd.DataFrame]] = (
        [(str(value), group) for value, group in frame.groupby(by, sort=False)] if by else [("", frame)]
    )
    figure = Figure(figsize=(4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (name, group) in zip(axes, panels, strict=True):
        _draw(axis, group, x, y, each, lines)
        if log_x:
            axis.set_xscale("log")
            axis.set_xticks(sorted(set(group[x].dropna())))
            axis.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
            axis.minorticks_off()
        axis.set_title(mathtext(name))
        axis.set_xlabel(x_label or mathtext(x))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(y_label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    if title:
        figure.suptitle(title, wrap=True)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, metadata={"Software": None}))


def check_formulas(**texts: str) -> None:
    """Refuse texts of a plot with formulas that matplotlib cannot draw, before there is anything to draw.

    Args:
        texts: by name.

    Raises:
        InputError: a broken formula.
    """
    from matplotlib.cbook import is_math_text
    from matplotlib.mathtext import MathTextParser

    parser: MathTextParser[Any] = MathTextParser("path")
    for name, text in texts.items():
        try:
            if is_math_text(text):
                parser.parse(text)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"`{name}` of a plot must have complete formulas between its dollar signs, got {text!r} ({reason}); "
                r"write \$ for a dollar sign"
            ) from error


def _draw(axis: Axes, frame: pd.DataFrame, x: str, y: Sequence[str], each: str | None, lines: bool) -> None:
    """One labelled line for each value of `each` and column of `y`."""
    curves = [(str(value), part) for value, part in frame.groupby(each, sort=False)] if each else [("", frame)]
    for (name, curve), column in itertools.product(curves, y):
        ordered = curve.sort_values(x)
        deviation = f"{column}_std"
        spread = ordered[deviation] if deviation in ordered.columns else None
        label = mathtext(name if name and len(y) == 1 else f"{name}: {column}".removeprefix(": "))
        if not lines:
            label += f", r = {ordered[x].corr(ordered[column]):+.2f}"
        style = "-" if lines else ""
        axis.errorbar(ordered[x], ordered[column], yerr=spread, marker="o", ls=style, capsize=3, label=label)
