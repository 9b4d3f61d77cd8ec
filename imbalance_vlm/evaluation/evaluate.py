"""Runs a trained head over a test set, in batches, and scores what it says."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from imbalance_vlm.components.ranges import Count, Natural
from imbalance_vlm.encoders.sources import Source, evaluation_rows
from imbalance_vlm.evaluation.metrics import Predictions
from imbalance_vlm.evaluation.tta import Tta, mean_logits

DEFAULT_GROUPS = {"many": 100, "few": 20}


@torch.no_grad()
def predict(head: nn.Module, source: Source, batch_size: int = 1024) -> Predictions:
    """Predictions of a head over a whole split, in its order.

    Only four numbers an image are kept: the logits of 24,426 images over 8,142 classes would take 800 MB.
    """
    head.eval()
    rows = evaluation_rows(source, batch_size)
    kept: dict[str, list[torch.Tensor]] = {"labels": [], "predicted": [], "confidence": [], "nll": []}
    for logits, labels in mean_logits(head, source, rows):
        log_probs = logits.log_softmax(dim=1)  # (B, C)
        best, predicted = log_probs.max(dim=1)
        kept["labels"].append(labels)
        kept["predicted"].append(predicted)
        kept["confidence"].append(best.exp())
        kept["nll"].append(-log_probs.gather(1, labels[:, None]).squeeze(1))
    joined = {key: torch.cat(parts).cpu().numpy() for key, parts in kept.items()}
    return Predictions(
        joined["labels"].astype(np.int64),
        joined["predicted"].astype(np.int64),
        joined["confidence"].astype(np.float64),
        joined["nll"].astype(np.float64),
    )


def evaluate(
    head: nn.Module,
    source: Source,
    *,
    groups: dict[Literal["many", "few"], int] = DEFAULT_GROUPS,  # type: ignore[assignment]
    calibration_bins: Count = 15,
    geometry: Literal["none", "train", "test"] = "none",
    novel: bool = False,
    curve: Natural = 0,
    tta: Tta = "none",
    batch_size: Count = 1024,
) -> Predictions:
    """Predictions on the test split.

    Args:
        head: the trained head.
        source: the test features.
        groups: classes with more than `many` training images are many, with fewer than `few` are few.
        calibration_bins: bins of the calibration error.
        geometry: the split whose features are measured for neural collapse and their angle to the text; see
            `imbalance_vlm.evaluation.geometry`.
        novel: with data.classes "base", test on the other half of the classes too, by their names; see
            `imbalance_vlm.evaluation.novel`.
        curve: with `novel`, measure both halves behind every so many epochs, into metrics.jsonl; 0 for never.
        tta: average the logits over "five_crops" of each test image, or over these and their mirror images
            ("five_crops_flips"), instead of its one view; see `imbalance_vlm.evaluation.tta`.
        batch_size: images at a time, at most: of large images and of tokens there are fewer, to save memory.
    """
    # What is deleted is read where the scores are made; it stands here as one of the section's settings.
    del groups, calibration_bins, geometry, novel, curve, tta
    return predict(head, source, batch_size)
