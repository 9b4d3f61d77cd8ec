"""Images whose label their neighbours do not believe.

An image is suspect when its k nearest training images, by the cosine of the encoder's features, are all of one class,
and not of its own. A class with a single training image has no neighbour that could speak for it, and is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.assembly import as_key, encoder, encoder_settings
from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.encoders.factory import encoder_identity
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.progress import bar
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.verification.collection import WHOLE, Collection
from imbalance_vlm.verification.inspecting import Inspected

ROWS = 256
"""Images compared with all training images at a time."""


@dataclass(frozen=True)
class Embedded:
    """The readable images of a split: rows of the collection, (N,), unit features, (N, d), and labels, (N,)."""

    rows: NDArray[np.int64]
    features: Tensor
    labels: Tensor


def suspects(
    collection: Collection, seen: Sequence[Inspected], neighbours: int, device: str
) -> list[tuple[int, int, int]]:
    """(row, the class of its neighbours, how many neighbours) of every suspect image.

    Args:
        collection: with a dataset and a recipe.
        seen: what was found on its images; those that cannot be read are left out.
        neighbours: training images that must agree.
        device: "auto", or torch's name of one.
    """
    splits = embed(collection, seen, device)
    train = next(iter(splits.values()))
    counts = np.bincount(train.labels.numpy(), minlength=len(collection.class_names))
    found = []
    for number, part in enumerate(splits.values()):
        with bar(len(part.rows), "compare labels", "img") as progress:
            for start in range(0, len(part.rows), ROWS):
                stop = min(start + ROWS, len(part.rows))
                own = range(start, stop) if number == 0 else None
                agreed = agreement(part.features[start:stop], train.features, train.labels, neighbours, own)
                for row, other in enumerate(agreed.tolist(), start):
                    label = int(part.labels[row])
                    if other not in (-1, label) and counts[label] > int(number == 0):
                        found.append(
                            (int(part.rows[row]), int(other), min(neighbours, len(train.rows) - int(number == 0)))
                        )
                progress.update(stop - start)
    return found


def agreement(queries: Tensor, keys: Tensor, labels: Tensor, neighbours: int, own: range | None = None) -> Tensor:
    """(B,) the class that all nearest neighbours share, -1 where they differ.

    Args:
        queries: (B, d) unit rows.
        keys: (N, d) unit rows of the training images.
        labels: (N,) their classes.
        neighbours: how many are asked; all there are, if that is fewer.
        own: the places of the queries among the keys; an image is no neighbour of itself.
    """
    close = queries @ keys.T  # (B, N)
    if own is not None:
        close[torch.arange(len(queries)), torch.arange(own.start, own.stop)] = -torch.inf
    asked = min(neighbours, len(keys) - (own is not None))
    if asked < 1:
        return torch.full((len(queries),), -1)
    nearest = labels[close.topk(asked, dim=1).indices]  # (B, k)
    return torch.where((nearest == nearest[:, :1]).all(1), nearest[:, 0], -1)


def embed(collection: Collection, seen: Sequence[Inspected], device: str) -> dict[str, Embedded]:
    """The splits through the recipe's encoder, "train" first; what a run has left in the feature cache is used."""
    recipe, data = collection.recipe, collection.dataset
    if recipe is None or data is None:
        raise ValueError("embeddings need a recipe and its dataset")
    place = resolve_device(device)
    net = encoder(as_key(encoder_settings(recipe)), encoder_identity(recipe["encoder"]), place)
    kind = recipe["encoder"]["features"]
    how = {key: recipe["encoder"][key] for key in settings_of(feature_source)}
    found = {}
    start = 0
    for name in collection.splits:
        split = data.splits["train" if name == WHOLE else name]
        readable = [row for row in range(len(split)) if not seen[start + row].problem]
        kept = split if len(readable) == len(split) else split.take(np.array(readable, np.int64))
        if len(kept):
            source = feature_source(
                net,
                kept,
                "class_token" if kind == "tokens" else kind,
                [net.preprocessing],
                place,
                f"{data.name} {'train' if name == WHOLE else name}",
                **how,
            )
            parts = [features for features, _ in source.batches(list(_blocks(len(kept))))]
            unit = F.normalize(torch.cat(parts).float().cpu(), dim=1)
            found[name] = Embedded(np.array(readable) + start, unit, torch.from_numpy(kept.labels))
        start += len(split)
    return found


def _blocks(total: int) -> Iterator[Tensor]:
    yield from torch.arange(total).split(4096)
