"""The columns of the result tables, in order."""

from __future__ import annotations

IDENTITY = ("recipe", "dataset", "encoder", "pretrained", "pretrain_pairs", "tuning", "head", "balancing")
MAIN = ("overall", "many", "medium", "few")
MEANS = ("class_mean", "macro_f1", "harmonic_mean", "geometric_mean", "worst_class")
CALIBRATION = ("ece", "nll", "ece_many", "nll_many", "ece_medium", "nll_medium", "ece_few", "nll_few")
SCORES = (*MAIN, *MEANS, *CALIBRATION)
COST = ("trainable_parameters", "encode_seconds", "train_seconds", "peak_memory_mb", "images_per_second")
SPREADS = tuple(f"{score}_std" for score in MAIN)
COLUMNS = (*IDENTITY, "seeds", "n", *SCORES, *SPREADS, *COST)
SMALL_IS_GOOD = (*CALIBRATION, *COST[:-1])
"""What a sort from best to worst begins with the smallest of."""
