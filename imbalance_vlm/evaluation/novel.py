"""What a model that was trained on some classes makes of others, which it knows by their names alone.

[0] Zhou, Yang, Loy, Liu. Conditional Prompt Learning for Vision-Language Models. CVPR 2022. (base to novel, transfer)
[1] Xian, Schiele, Akata. Zero-Shot Learning: The Good, the Bad and the Ugly. CVPR 2017. (the harmonic mean; both halves
    in one label space)

    H = 2 B N / (B + N)     B, N: accuracy on the test images of base classes among the base classes, and of novel
                            classes among the novel ones

Among their own kind alone, novel images are spared every confusion with base classes, which a model that was trained on
these prefers; `joint` is the accuracy over all test images among all classes.

Accuracies are in percent and over images, all of equal weight. What is undefined is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalance_vlm.encoders.sources import Source, evaluation_rows
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.evaluation.metrics import Predictions, mean, per_class_accuracy
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.text import TextHead

NOVEL_SCORES = ("base", "novel", "h", "joint", "joint_base", "joint_novel", "novel_class_mean")

BATCH = 1024


def head_over(head: Head, class_names: Sequence[str], text: Callable[[Sequence[str]], Tensor]) -> Head:
    """The head with other classes in the place of its own; what it has learned is shared, not copied.

    Args:
        head: one that reads class names: of prompt tuning, or the zero-shot classifier.
        class_names: of the other classes.
        text: (M, d) unit text features of names, as the untouched tower gives them.

    Raises:
        InputError: a classifier that knows its own classes alone.
    """
    others = getattr(head, "for_names", None)
    if others is not None:
        made: Head = others(class_names)
        return made
    if isinstance(head, TextHead):
        directions = text(class_names)
        return TextHead(directions.shape[1], len(class_names), directions, head.scale).to(head.weight.device)
    raise InputError(
        f"classes that were not trained need a head that reads their names, got {type(head).__name__}, which knows its "
        "own classes alone; use tuning 'prompt', or 'zero_shot' with head 'text'"
    )


def accuracy(predictions: Predictions) -> float:
    """Share of the images that were recognised, in percent; NaN without images."""
    return float(100.0 * (predictions.labels == predictions.predicted).mean()) if len(predictions.labels) else math.nan


def harmonic(base: float, novel: float) -> float:
    """H = 2 B N / (B + N); 0 where both are 0, NaN where one is undefined.

    >>> round(harmonic(82.69, 63.22), 2)
    71.66
    """
    if math.isnan(base) or math.isnan(novel):
        return math.nan
    return 2.0 * base * novel / (base + novel) if base + novel else 0.0


def base_to_novel(base: Predictions, novel: Predictions, joint: Predictions) -> dict[str, float]:
    """The scores of the base-to-novel protocol, `NOVEL_SCORES`.

    Args:
        base: of base images among the base classes.
        novel: of novel images among the novel classes.
        joint: of all of them among all classes: first the rows of `base`, then those of `novel`.

    Raises:
        InputError: another number of rows in `joint`.
    """
    first = len(base.labels)
    if len(joint.labels) != first + len(novel.labels):
        raise InputError(
            f"`joint` must hold the rows of `base` and then those of `novel`, {first} + {len(novel.labels)}, got "
            f"{len(joint.labels)}"
        )
    found = dict(zip(("base", "novel"), map(accuracy, (base, novel)), strict=True))
    found["h"] = harmonic(found["base"], found["novel"])
    found["joint"] = accuracy(joint)
    found["joint_base"] = accuracy(_rows(joint, slice(first)))
    found["joint_novel"] = accuracy(_rows(joint, slice(first, None)))
    num_classes = int(novel.labels.max()) + 1 if len(novel.labels) else 0
    found["novel_class_mean"] = mean(per_class_accuracy(novel.labels, novel.predicted, num_classes))
    return found


def average_h(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Two averages of H over datasets, both of which tables print: the mean of H, and H of the means of B and N.

    A row without both `base` and `novel` takes no part in either.

    >>> average_h([{"base": 80.0, "novel": 80.0}, {"base": 90.0, "novel": 30.0}])
    {'mean_of_h': 62.5, 'h_of_means': 66.78571428571429}
    """
    pairs = [(row["base"], row["novel"]) for row in rows if not math.isnan(row["base"] + row["novel"])]
    if not pairs:
        return {"mean_of_h": math.nan, "h_of_means": math.nan}
    base, novel = np.array(pairs).T
    return {
        "mean_of_h": float(np.mean([harmonic(*pair) for pair in pairs])),
        "h_of_means": harmonic(float(base.mean()), float(novel.mean())),
    }


@torch.no_grad()
def novel_predictions(
    head: Head, others: Head, base: Source, novel: Source, batch_size: int = BATCH
) -> tuple[Predictions, Predictions]:
    """Predictions of the novel images among the novel classes, and of all images among all classes (`base_to_novel`).

    A class's logit depends on no other class, so that both heads side by side are the head over all classes.

    Args:
        head: over the base classes.
        others: the same over the novel ones (`head_over`): it embeds as `head` does.
        base: test images of the base classes.
        novel: test images of the novel classes, which count from 0.
        batch_size: images at a time.
    """
    head.eval()
    others.eval()
    own: list[Tensor] = []
    joint: list[Tensor] = []
    for source, is_novel in ((base, False), (novel, True)):
        for features, labels in source.batches(evaluation_rows(source, batch_size)):
            embeddings = head.embed(features)
            of_base, of_novel = head.classify(embeddings), others.classify(embeddings)
            if is_novel:
                own.append(_verdicts(of_novel, labels))
                labels = labels + of_base.shape[1]
            joint.append(_verdicts(torch.cat([of_base, of_novel], 1), labels))
    return _predictions(own), _predictions(joint)


def curve_row(head: Head, others: Head, base: Source, novel: Source, batch_size: int = BATCH) -> dict[str, float]:
    """Base and novel accuracy and H at one moment of training, on the test images.

    With cached features it costs a pass of all class names through the text tower, and no images. It shows what
    training does; no epoch is chosen by it.
    """
    found = {
        "base": accuracy(predict(head, base, batch_size)),
        "novel": accuracy(predict(others, novel, batch_size)),
    }
    return found | {"h": harmonic(**found)}


def curve(
    head: Head, others: Head, base: Source, novel: Source, every: int, epochs: int
) -> Callable[[int], dict[str, float]]:
    """What the training loop calls behind each epoch: a `curve_row` behind each `every`-th and the last of `epochs`."""

    def after_epoch(epoch: int) -> dict[str, float]:
        return curve_row(head, others, base, novel) if epoch % every == 0 or epoch == epochs else {}

    return after_epoch


def best_epoch(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The epoch with the highest H of a curve, and what base and novel were there; NaN without a curve.

    It is chosen on test images: a bound that shows what overfitting costs, and no result.
    """
    rows = [row for row in history if not math.isnan(row.get("h", math.nan))]
    if not rows:
        return dict.fromkeys(("best_epoch", "best_base", "best_novel", "best_h"), math.nan)
    best = max(rows, key=lambda row: row["h"])
    return {
        "best_epoch": float(best["epoch"]),
        **{f"best_{score}": float(best[score]) for score in ("base", "novel", "h")},
    }


def transfer(
    head: Head,
    sets: Mapping[str, tuple[Sequence[str], Source]],
    text: Callable[[str, Sequence[str]], Tensor],
    batch_size: int = BATCH,
) -> dict[str, float]:
    """Accuracy of what was learned here on other datasets, each among its own classes, and their mean.

    Args:
        head: one that reads class names; see `head_over`.
        sets: class names and test images by the name of the dataset.
        text: (M, d) unit text features of a dataset's names in its own sentences; read for the zero-shot head.
        batch_size: images at a time.

    Returns:
        "transfer_<dataset>" for each, and "transfer", NaN without any.
    """
    found = {}
    for name, (class_names, source) in sets.items():
        others = head_over(head, class_names, lambda names, name=name: text(name, names))  # type: ignore[misc]
        found[f"transfer_{name}"] = accuracy(predict(others, source, batch_size))
    return found | {"transfer": mean(np.array(list(found.values()), dtype=float))}


def _verdicts(logits: Tensor, labels: Tensor) -> Tensor:
    """(4, B): label, predicted class, its probability and -log p of the label."""
    log_probs = logits.float().log_softmax(1)  # (B, C)
    best, predicted = log_probs.max(1)
    missed = -log_probs.gather(1, labels[:, None]).squeeze(1)
    return torch.stack([labels.double(), predicted.double(), best.double().exp(), missed.double()])


def _predictions(parts: Sequence[Tensor]) -> Predictions:
    labels, predicted, confidence, nll = torch.cat(list(parts), 1).cpu().numpy()
    return Predictions(labels.astype(np.int64), predicted.astype(np.int64), confidence, nll)


def _rows(predictions: Predictions, rows: slice) -> Predictions:
    return Predictions(
        predictions.labels[rows], predictions.predicted[rows], predictions.confidence[rows], predictions.nll[rows]
    )
