"""Tables as functions of result files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from imbalance_vlm import escapes
from imbalance_vlm.errors import InputError, did_you_mean, one_of
from imbalance_vlm.evaluation.base import Column, registered_columns
from imbalance_vlm.files import write_atomically, write_text
from imbalance_vlm.results.columns import COST, IDENTITY, SAMPLES, table_columns


class Result(Protocol):
    """A run's record, as `imbalance_vlm.results.result.RunResult` holds it."""

    @property
    def record(self) -> Mapping[str, Any]: ...

    @property
    def scores(self) -> Mapping[str, float]: ...


Columns = Mapping[str, Column]


def score_columns(results: Sequence[Result]) -> tuple[Column, ...]:
    """The scores' columns as the results hold them; those of the registered evaluators where a result holds none."""
    columns: dict[str, Column] = {}
    for result in results:
        recorded = result.record.get("columns")
        for column in registered_columns() if recorded is None else map(_column, recorded):
            columns.setdefault(column.name, column)
    return tuple(columns.values())


def _column(recorded: Mapping[str, Any]) -> Column:
    """A column as a result describes it; later versions may say more."""
    return Column(
        **{field.name: recorded[field.name] for field in fields(Column) if recorded.get(field.name) is not None}
    )


def columns_of(results: Sequence[Result]) -> Columns:
    """Every column that a table of these results may have, by name: what formatting and sorting need."""
    return table_columns(score_columns(results))


def rows(results: Sequence[Result]) -> pd.DataFrame:
    """One row per run: identity, seed, scores, cost."""
    return pd.DataFrame([_row(result) for result in results])


def _row(result: Result) -> dict[str, Any]:
    record = result.record
    identity = {key: record["identity"].get(key) for key in IDENTITY}
    cost = {column.name: record["cost"].get(column.name) for column in COST}
    if not cost["trainable_parameters"] and not cost["train_seconds"]:
        cost |= dict.fromkeys(("train_seconds", "images_per_second"), float("nan"))  # nothing was trained
    chosen = {"chosen": dict(record.get("chosen") or {})}
    return {"config": record["config"], **identity, "seed": record["seed"], **result.scores, **chosen, **cost}


def table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per configuration: the means over its seeds, and for some scores their sample standard deviation.

    Runs of one configuration differ only in their seed; two that differ in anything else are two rows, even where all
    columns agree.

    Columns: the identity, `seeds`, `n`, the scores as means, each followed by `<score>_std` (n - 1 in the denominator;
    NaN for one seed) where its evaluator asks for that, then what was chosen on validation images (only where anything
    was) and the cost.
    """
    single = rows(results)
    numbers = [column for column in single.columns if column not in ("config", *IDENTITY, "seed", "chosen")]
    grouped = single.groupby(["config", *IDENTITY], sort=False, dropna=False)
    mean = grouped[numbers].mean()
    if grouped.size().max() > 1:
        scores = [column.name for column in score_columns(results) if column.deviation and column.name in mean.columns]
        deviation = grouped[scores].std(ddof=1)
        for score in scores:
            mean.insert(int(mean.columns.get_loc(score)) + 1, f"{score}_std", deviation[score])  # type: ignore[arg-type]
    mean.insert(0, "seeds", grouped["seed"].agg(lambda seeds: ",".join(map(str, sorted(seeds)))))
    mean.insert(1, "n", grouped.size())
    if any(single["chosen"]):
        mean.insert(mean.columns.get_loc(COST[0].name), "chosen", grouped["chosen"].agg(_choices))  # type: ignore[arg-type]
    return _with_samples(_with_published(mean.reset_index().drop(columns="config"), results), results)


def _with_samples(frame: pd.DataFrame, results: Sequence[Result]) -> pd.DataFrame:
    """The table with the samples of pre-training next to its pairs, where they are known for any row."""
    identities = [result.record["identity"] for result in results]
    samples = {(each["encoder"], each["pretrained"]): each[SAMPLES] for each in identities if each.get(SAMPLES)}
    column = [samples.get(weights) for weights in zip(frame["encoder"], frame["pretrained"], strict=True)]
    if any(column):
        place = int(frame.columns.get_loc("pretrain_pairs")) + 1  # type: ignore[arg-type]
        frame.insert(place, SAMPLES, pd.Series(column, index=frame.index, dtype="Int64"))
    return frame


def _choices(chosen: pd.Series) -> str:
    """What the seeds chose, "tau 0.8" or "tau 0.7..0.9"."""
    names = dict.fromkeys(name for choices in chosen for name in choices)
    words = []
    for name in names:
        values = [choices[name] for choices in chosen if name in choices]
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        words.append(f"{name.rpartition('.')[2]} {low if low == high else f'{low}..{high}'}")
    return ", ".join(words)


def _with_published(frame: pd.DataFrame, results: Sequence[Result]) -> pd.DataFrame:
    """The table with, below the rows of each recipe that has one, the published row, marked "(paper)"."""
    published = {r.record["identity"]["recipe"]: r.record["paper"] for r in results if r.record.get("paper")}
    if not published:
        return frame
    parts: list[dict[Any, Any]] = []
    for _, row in frame.iterrows():
        parts.append(row.to_dict())
        paper = published.get(row["recipe"])
        if paper:
            same = {key: row[key] for key in IDENTITY}
            figures = {key: float(paper[key]) for key in frame.columns if key in paper}
            parts.append(same | {"recipe": f"{row['recipe']} (paper)", "seeds": "-"} | figures)
    return pd.DataFrame(parts, columns=frame.columns)


def text(value: Any, column: Column) -> str:
    """A cell as text, "-" for a missing value."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if column.thousands:
        return f"{int(value):,}"
    if isinstance(value, (float, np.floating)):
        return f"{value:{'+' if column.sign else ''}.{column.digits}f}"
    return str(value)


def cells(frame: pd.DataFrame, columns: Columns | None = None) -> pd.DataFrame:
    """The table as text, with `mean ± std` in one cell where both exist.

    Args:
        frame: a table.
        columns: by name, as `columns_of` gives them; None for those of the registered evaluators.
    """
    columns = table_columns(registered_columns()) if columns is None else columns
    shown = {}
    for name in map(str, frame.columns):
        if name.endswith("_std") and name[:-4] in frame.columns:
            continue
        column = columns.get(name, Column(name))
        values = [text(value, column) for value in frame[name]]
        if f"{name}_std" in frame.columns:
            spread = [text(value, column) for value in frame[f"{name}_std"]]
            values = [v if s == "-" else f"{v} ± {s}" for v, s in zip(values, spread, strict=True)]
        shown[name] = values
    return pd.DataFrame(shown)


def select(
    frame: pd.DataFrame, names: Sequence[str] | None, sort: str | None = None, columns: Columns | None = None
) -> pd.DataFrame:
    """The named columns (with their deviations), sorted from best to worst by one of them.

    Args:
        frame: a table.
        names: of the columns to keep; None for all.
        sort: the column to sort by; None keeps the order.
        columns: by name, as `columns_of` gives them; None for those of the registered evaluators.

    Raises:
        InputError: a column that the table does not have.
    """
    for name in [*(names or []), *([sort] if sort else [])]:
        if name not in frame.columns:
            raise InputError(
                f"unknown table column {name!r}.{did_you_mean(name, map(str, frame.columns))} "
                f"Available: {', '.join(map(str, frame.columns))}"
            )
    if sort:
        columns = table_columns(registered_columns()) if columns is None else columns
        smallest_first = columns.get(sort, Column(sort)).smaller_is_better
        frame = frame.sort_values(sort, ascending=smallest_first, kind="stable")
    if names:
        selected = [column for name in names for column in (name, f"{name}_std") if column in frame.columns]
        frame = frame[selected]
    return frame.reset_index(drop=True)


def markdown(frame: pd.DataFrame, columns: Columns | None = None) -> str:
    """A Markdown table; `columns` as for `cells`."""
    shown = cells(frame, columns)
    numeric = [pd.api.types.is_numeric_dtype(frame[name]) for name in shown.columns]
    escaped = [[escapes.markdown(str(value)) for value in row] for row in [list(shown.columns), *shown.to_numpy()]]
    widths = [max(len(row[i]) for row in escaped) for i in range(len(shown.columns))]
    lines = [
        "| " + " | ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(row, widths, numeric, strict=True)) + " |"
        for row in escaped
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def latex(frame: pd.DataFrame, columns: Columns | None = None) -> str:
    """A booktabs table; `columns` as for `cells`."""
    shown = cells(frame, columns)
    alignment = "".join("r" if pd.api.types.is_numeric_dtype(frame[name]) else "l" for name in shown.columns)
    head, *body = (
        " & ".join(escapes.latex(str(value)) for value in row) + r" \\"
        for row in [list(shown.columns), *shown.to_numpy()]
    )
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def csv(frame: pd.DataFrame, columns: Columns | None = None) -> str:
    """A CSV table with all digits; text is written as `imbalance_vlm.escapes.csv_cell` says."""
    return frame.rename(columns=escapes.csv_cell).map(escapes.csv_cell).to_csv(index=False)


FORMATS: dict[str, Callable[[pd.DataFrame, Columns | None], str]] = {
    "md": markdown,
    "tex": latex,
    "csv": csv,
}
_ALIASES = {"markdown": "md", "latex": "tex"}


def format_table(frame: pd.DataFrame, style: str, columns: Columns | None = None) -> str:
    """The table as text in one of the styles markdown, latex, csv; `columns` as for `cells`."""
    short = _ALIASES.get(style, style)
    if short == "parquet":
        raise InputError("`format` parquet is not text: write it with --out FILE.parquet")
    if short not in FORMATS:
        raise InputError(
            f"`format` must be {one_of([*_ALIASES, *FORMATS])}, or parquet with --out FILE.parquet, got {style!r}"
        )
    return FORMATS[short](frame, columns)


def save_table(frame: pd.DataFrame, path: Path, columns: Columns | None = None) -> None:
    """Write the table in the format of the suffix: .md, .tex, .csv or .parquet (which needs pyarrow)."""
    suffix = path.suffix.lstrip(".")
    if suffix == "parquet":
        try:
            write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))
        except ImportError as error:
            raise InputError("Parquet files need pyarrow: pip install 'imbalance_vlm[parquet]'") from error
        return
    content = format_table(frame, suffix, columns)
    write_text(path, content)
