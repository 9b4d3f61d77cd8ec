"""The columns of the result tables, in order."""

from __future__ import annotations

IDENTITY = ("recipe", "dataset", "encoder", "pretrained", "pretrain_pairs", "tuning", "head", "balancing")
MAIN = ("overall", "many", "medium", "few")
MEANS = ("class_mean", "macro_f1", "harmonic_mean", "geometric_mean", "worst_class")
CALIBRATION = ("ece", "nll", "ece_many", "nll_many", "ece_medium", "nll_medium", "ece_few", "nll_few")
SCORES = (*MAIN, *MEANS, *CALIBRATION)
GEOMETRY = (
    "nc1",
    "equinorm_image",
    "equiangularity_image",
    "max_angle_image",
    "self_duality",
    "nc4",
    "equinorm_text",
    "equiangularity_text",
    "max_angle_text",
    "effective_rank_text",
    "equiangularity_text_image",
    "max_angle_text_image",
    "self_duality_text_image",
    "modality_gap",
)
"""Only in the rows of recipes with `evaluation.geometry`."""
COST = ("trainable_parameters", "encode_seconds", "train_seconds", "peak_memory_mb", "images_per_second")
SPREADS = tuple(f"{score}_std" for score in (*MAIN, "base", "novel", "h"))
NOVEL = ("base", "novel", "h", "joint", "joint_base", "joint_novel", "novel_class_mean", "transfer")
"""Only in the rows of recipes with `evaluation.novel` or `evaluation.transfer`."""
AVERAGES = ("mean_of_h",)
"""Only with `table.average`, in the rows of averages."""
BEST = ("best_epoch", "best_base", "best_novel", "best_h")
"""Only with `evaluation.curve`; chosen on test images, so a bound and no result."""
COMPARISON = ("difference", "p_value")
"""Of a study with a `table.baseline`."""
SAMPLES = "samples_seen"
"""Of pre-training, every epoch counted; beside `pretrain_pairs`, where an encoder's tag says it."""
_OF_RUNS = (*SCORES, *SPREADS, *COMPARISON, *NOVEL, *AVERAGES, *BEST, *GEOMETRY, "chosen", *COST)
COLUMNS = (*IDENTITY, SAMPLES, "seeds", "n", *_OF_RUNS)
SMALL_IS_GOOD = (*CALIBRATION, "p_value", *(name for name in GEOMETRY if "rank" not in name), *COST[:-1])
"""What a sort from best to worst begins with the smallest of."""
