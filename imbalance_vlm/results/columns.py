"""The columns of a table that are not scores: identity and cost of a run, number of seeds, and what a study adds."""

from __future__ import annotations

from collections.abc import Iterable

from imbalance_vlm.evaluation.base import Column

IDENTITY = ("recipe", "dataset", "encoder", "pretrained", "pretrain_pairs", "tuning", "head", "balancing")
SAMPLES = "samples_seen"
"""Image-text pairs of the encoder's pre-training, every epoch counted; only where it is known of any row."""
COST = (
    Column("trainable_parameters", smaller_is_better=True, thousands=True),
    Column("encode_seconds", smaller_is_better=True),
    Column("train_seconds", smaller_is_better=True),
    Column("peak_memory_mb", smaller_is_better=True),
    Column("images_per_second"),
)
COMPARISON = (Column("difference", sign=True), Column("p_value", digits=3, smaller_is_better=True))
"""Only in a study with `table.baseline`."""
AVERAGES = (Column("mean_of_h"),)
"""Only in a study with `table.average`, in the rows of averages."""
_COUNTS = tuple(Column(name, thousands=True) for name in ("pretrain_pairs", SAMPLES, "n"))


def table_columns(scores: Iterable[Column]) -> dict[str, Column]:
    """Every column that a table of runs with these scores may have, by name.

    Args:
        scores: the columns of the runs' evaluators.
    """
    scores = tuple(scores)
    place = IDENTITY.index("pretrain_pairs") + 1
    identity = map(Column, (*IDENTITY[:place], SAMPLES, *IDENTITY[place:], "seeds", "n"))
    deviations = (Column(f"{column.name}_std", digits=column.digits) for column in scores if column.deviation)
    columns = (*identity, *scores, *deviations, *COMPARISON, *AVERAGES, Column("chosen"), *COST)
    return {column.name: column for column in columns} | {column.name: column for column in _COUNTS}
