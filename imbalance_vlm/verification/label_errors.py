"""Images that may be wrongly labelled, by their nearest neighbours.

An image is suspect when its k nearest training images, by the cosine of the encoder's features, are all of one class
that is not its own. The only training image of a class has no neighbour of that class, and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components.settings import settings_of
from imbalance_vlm.encoders.base import KINDS
from imbalance_vlm.encoders.features import feature_source
from imbalance_vlm.progress import bar
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.verification.collection import WHOLE, Collection
from imbalance_vlm.verification.findings import Finding
from imbalance_vlm.verification.inspection import Inspection

ROWS = 256
"""Images compared with all training images at a time."""
BLOCK = 4096
"""Images whose features are read at a time."""


@dataclass(frozen=True)
class Embedded:
    """The readable images of a split.

    Args:
        rows: (N,) rows of the collection.
        features: (N, d) unit features.
        labels: (N,) classes.
    """

    rows: NDArray[np.int64]
    features: Tensor
    labels: Tensor


def label_errors(
    collection: Collection, inspections: Sequence[Inspection], neighbours: int, device: str
) -> list[Finding]:
    """Findings for images whose label their nearest neighbours contradict.

    Args:
        collection: with a dataset and a recipe.
        inspections: of its images; those that cannot be read are left out.
        neighbours: number of nearest training images that must agree.
        device: "auto", or torch's name of one.
    """
    splits = embed(collection, inspections, device)
    train = next(iter(splits.values()))
    counts = np.bincount(train.labels.numpy(), minlength=len(collection.class_names))
    findings = []
    for part in splits.values():
        in_train = part is train
        compared = min(neighbours, len(train.rows) - in_train)
        with bar(len(part.rows), "compare labels", "img") as progress:
            for start in range(0, len(part.rows), ROWS):
                stop = min(start + ROWS, len(part.rows))
                positions = range(start, stop) if in_train else None
                shared = agreement(part.features[start:stop], train.features, train.labels, neighbours, positions)
                for row, other in enumerate(shared.tolist(), start):
                    label = int(part.labels[row])
                    if other not in (-1, label) and counts[label] > in_train:
                        image = collection.images[int(part.rows[row])]
                        detail = f"all {compared} nearest training images are of that class"
                        other_class = collection.class_names[other]
                        findings.append(collection.finding(image, "label_suspect", other_class, detail))
                progress.update(stop - start)
    return findings


def agreement(queries: Tensor, keys: Tensor, labels: Tensor, neighbours: int, positions: range | None = None) -> Tensor:
    """(B,) the class that all nearest neighbours share, -1 where they differ.

    Args:
        queries: (B, d) unit rows.
        keys: (N, d) unit rows of the training images.
        labels: (N,) their classes.
        neighbours: number of neighbours; all keys if there are fewer.
        positions: the rows of the queries among the keys, where they are keys; an image is not a neighbour of itself.
    """
    close = queries @ keys.T  # (B, N)
    if positions is not None:
        close[torch.arange(len(queries)), torch.arange(positions.start, positions.stop)] = -torch.inf
    compared = min(neighbours, len(keys) - (positions is not None))
    if compared < 1:
        return torch.full((len(queries),), -1)
    nearest = labels[close.topk(compared, dim=1).indices]  # (B, k)
    return torch.where((nearest == nearest[:, :1]).all(1), nearest[:, 0], -1)


def embed(collection: Collection, inspections: Sequence[Inspection], device: str) -> dict[str, Embedded]:
    """The splits through the recipe's encoder, "train" first; features that a run has cached are used."""
    recipe, data = collection.recipe, collection.dataset
    if recipe is None or data is None:
        raise ValueError("embeddings need a recipe and its dataset")
    torch_device = resolve_device(device)
    encoder = Resources().encoder(recipe["encoder"], torch_device)
    features = recipe["encoder"].get("features", KINDS[0])
    settings = {key: recipe["encoder"][key] for key in settings_of(feature_source)}
    embedded = {}
    start = 0
    for name in collection.splits:
        split_name = "train" if name == WHOLE else name
        split = data.splits[split_name]
        readable = [row for row in range(len(split)) if not inspections[start + row].problem]
        part = split if len(readable) == len(split) else split.take(np.array(readable, np.int64))
        if len(part):
            source = feature_source(
                encoder,
                part,
                "class_token" if features == "tokens" else features,
                [encoder.preprocessing],
                torch_device,
                f"{data.name} {split_name}",
                **settings,
            )
            blocks = list(torch.arange(len(part)).split(BLOCK))
            rows = torch.cat([block for block, _ in source.batches(blocks)]).float().cpu()
            embedded[name] = Embedded(
                np.array(readable) + start, F.normalize(rows, dim=1), torch.from_numpy(part.labels)
            )
        start += len(split)
    return embedded
