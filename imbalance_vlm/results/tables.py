"""Tables are functions of result files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imbalance_vlm.encoders.pretraining import samples_seen
from imbalance_vlm.errors import InputError, did_you_mean, one_of
from imbalance_vlm.files import write_atomically
from imbalance_vlm.results.columns import COST, GEOMETRY, IDENTITY, MAIN, SAMPLES, SMALL_IS_GOOD
from imbalance_vlm.results.result import RunResult


def rows(results: Sequence[RunResult]) -> pd.DataFrame:
    """One row a run: what it was, the seed, scores, cost."""
    return pd.DataFrame([_row(result) for result in results])


def _row(result: RunResult) -> dict[str, Any]:
    record = result.record
    identity = {key: record["identity"].get(key) for key in IDENTITY}
    cost = {key: record["cost"].get(key) for key in COST}
    chosen = {"chosen": dict(record.get("chosen") or {})}
    return {"config": record["config"], **identity, "seed": record["seed"], **result.scores, **chosen, **cost}


def table(results: Sequence[RunResult]) -> pd.DataFrame:
    """One row a configuration: the mean over its seeds, and beside each main score its sample standard deviation.

    Runs of one configuration differ in their seed alone; two that differ in anything else are two rows, also where all
    columns agree.

    Columns: what it was, `seeds`, `n`, the scores as means, `<score>_std` (n - 1 in the denominator; NaN for one seed)
    for overall, many, medium and few, then the other scores, what was chosen on validation images (only where
    anything was) and the cost.
    """
    single = rows(results)
    numbers = [column for column in single.columns if column not in ("config", *IDENTITY, "seed", "chosen")]
    grouped = single.groupby(["config", *IDENTITY], sort=False, dropna=False)
    mean = grouped[numbers].mean()
    if grouped.size().max() > 1:
        spread = [score for score in (*MAIN, "base", "novel", "h") if score in mean.columns]
        deviation = grouped[spread].std(ddof=1)
        for score in spread:
            mean.insert(int(mean.columns.get_loc(score)) + 1, f"{score}_std", deviation[score])  # type: ignore[arg-type]
    mean.insert(0, "seeds", grouped["seed"].agg(lambda seeds: ",".join(map(str, sorted(seeds)))))
    mean.insert(1, "n", grouped.size())
    if any(single["chosen"]):
        mean.insert(mean.columns.get_loc(COST[0]), "chosen", grouped["chosen"].agg(_choices))  # type: ignore[arg-type]
    return _with_samples(_with_published(mean.reset_index().drop(columns="config"), results))


def _with_samples(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the samples seen in pre-training beside its pairs, where that is known of any row."""
    seen = [samples_seen(*names) for names in zip(frame["encoder"], frame["pretrained"], strict=True)]
    if any(seen):
        place = int(frame.columns.get_loc("pretrain_pairs")) + 1  # type: ignore[arg-type]
        frame.insert(place, SAMPLES, pd.Series(seen, index=frame.index, dtype="Int64"))
    return frame


def _choices(chosen: pd.Series) -> str:
    """What the seeds chose, "tau 0.8" or "tau 0.7..0.9"."""
    names = dict.fromkeys(name for one in chosen for name in one)
    words = []
    for name in names:
        values = [one[name] for one in chosen if name in one]
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        words.append(f"{name.rpartition('.')[2]} {low if low == high else f'{low}..{high}'}")
    return ", ".join(words)


def _with_published(frame: pd.DataFrame, results: Sequence[RunResult]) -> pd.DataFrame:
    """The table with, below the rows of each recipe that carries one, the published row, marked "(paper)"."""
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


_THREE_DIGITS = ("nll", "p_value", *(name for name in GEOMETRY if name != "effective_rank_text"))


def text(value: Any, column: str = "") -> str:
    """A cell as people read it."""
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return "-"
    if column in ("pretrain_pairs", SAMPLES, "trainable_parameters", "n"):
        return f"{int(value):,}"
    if isinstance(value, (float, np.floating)):
        if column == "difference":
            return f"{value:+.1f}"
        return f"{value:.3f}" if column.startswith(_THREE_DIGITS) else f"{value:.1f}"
    return str(value)


def cells(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as text, with `mean ± std` in one cell where both are there."""
    shown = {}
    for column in frame.columns:
        if str(column).endswith("_std") and str(column)[:-4] in frame.columns:
            continue
        values = [text(value, str(column)) for value in frame[column]]
        if f"{column}_std" in frame.columns:
            spread = [text(value) for value in frame[f"{column}_std"]]
            values = [v if s == "-" else f"{v} ± {s}" for v, s in zip(values, spread, strict=True)]
        shown[column] = values
    return pd.DataFrame(shown)


def select(frame: pd.DataFrame, columns: Sequence[str] | None, sort: str | None = None) -> pd.DataFrame:
    """The columns asked for (with their deviations), sorted from best to worst by one of them.

    Raises:
        InputError: a column that the table has not.
    """
    for column in [*(columns or []), *([sort] if sort else [])]:
        if column not in frame.columns:
            raise InputError(
                f"unknown table column {column!r}.{did_you_mean(column, map(str, frame.columns))} "
                f"Available: {', '.join(map(str, frame.columns))}"
            )
    if sort:
        frame = frame.sort_values(sort, ascending=sort in SMALL_IS_GOOD, kind="stable")
    if columns:
        wanted = [name for column in columns for name in (column, f"{column}_std") if name in frame.columns]
        frame = frame[wanted]
    return frame.reset_index(drop=True)


def markdown(frame: pd.DataFrame) -> str:
    shown = cells(frame)
    numeric = [pd.api.types.is_numeric_dtype(frame[column]) for column in shown.columns]
    escaped = [[str(value).replace("|", "\\|") for value in row] for row in [list(shown.columns), *shown.to_numpy()]]
    widths = [max(len(row[i]) for row in escaped) for i in range(len(shown.columns))]
    lines = [
        "| " + " | ".join(v.rjust(w) if n else v.ljust(w) for v, w, n in zip(row, widths, numeric, strict=True)) + " |"
        for row in escaped
    ]
    rule = "|" + "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


_LATEX = str.maketrans(
    {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}", "±": r"$\pm$", "~": r"\~{}"}
)


def latex(frame: pd.DataFrame) -> str:
    """A booktabs table."""
    shown = cells(frame)
    alignment = "".join("r" if pd.api.types.is_numeric_dtype(frame[column]) else "l" for column in shown.columns)
    body = [" & ".join(str(value).translate(_LATEX) for value in row) + r" \\" for row in shown.to_numpy()]
    head = " & ".join(str(column).translate(_LATEX) for column in shown.columns) + r" \\"
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


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "md": markdown,
    "tex": latex,
    "csv": lambda frame: frame.to_csv(index=False),
}
_ALIASES = {"markdown": "md", "latex": "tex"}


def format_table(frame: pd.DataFrame, style: str) -> str:
    """The table as text in one of the styles markdown, latex, csv."""
    short = _ALIASES.get(style, style)
    if short == "parquet":
        raise InputError("`format` parquet is no text: write it with --out FILE.parquet")
    if short not in FORMATS:
        raise InputError(
            f"`format` must be {one_of([*_ALIASES, *FORMATS])}, or parquet with --out FILE.parquet, got {style!r}"
        )
    return FORMATS[short](frame)


def save_table(frame: pd.DataFrame, path: Path) -> None:
    """Write the table; the suffix says how: .md, .tex, .csv or .parquet (which needs pyarrow)."""
    suffix = path.suffix.lstrip(".")
    if suffix == "parquet":
        try:
            write_atomically(path, lambda temporary: frame.to_parquet(temporary, index=False))
        except ImportError as error:
            raise InputError("Parquet files need pyarrow: pip install 'imbalance_vlm[parquet]'") from error
        return
    content = format_table(frame, suffix)
    write_atomically(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
