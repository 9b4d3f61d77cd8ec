"""A trained run applied to new images: `imbalance-vlm predict RUN IMAGES`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imbalance_vlm.assembly import as_key, component, encoder, encoder_settings, make_model, settings
from imbalance_vlm.components import catalogue
from imbalance_vlm.data.dataset import IMAGE_SUFFIXES, FileImages, Split
from imbalance_vlm.data.loading import Decoder
from imbalance_vlm.data.readability import unreadable
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.factory import encoder_identity
from imbalance_vlm.encoders.sources import ImageSource, PixelSource
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.evaluate import DEFAULT_GROUPS, predict
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.factory import create_head, reads_tokens
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.recipe.load import read_yaml
from imbalance_vlm.results.result import RunResult, read_result
from imbalance_vlm.training.checkpoints import load_weights
from imbalance_vlm.training.devices import named
from imbalance_vlm.tuning.base import Task, Tuning

if TYPE_CHECKING:
    import pandas as pd

PARTS = ("data", "encoder", "tuning", "head", "balancing", "training", "evaluation", "seed")
"""Of a complete recipe, what says how an image is classified."""
BATCH = 256


def predict_images(run: str | Path, images: Sequence[str | Path], device: str = "auto") -> pd.DataFrame:
    """What a trained run takes new images for.

    Args:
        run: the folder of a finished run.
        images: image files, or folders of them (with all folders below).
        device: where the model runs: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Returns:
        One row an image: `image`, `predicted` (a class name), `confidence` (its probability, in [0, 1]).

    Raises:
        InputError: no finished run, no images, images that cannot be read, or an encoder that is not the one the
            run was trained on.
    """
    import pandas as pd

    result = read_result(Path(run))
    if result is None:
        raise InputError(f"`run` must be the folder of a finished run (it holds result.json), got {str(run)!r}")
    recipe = read_yaml(Path(run) / "recipe.resolved.yaml")
    lost = [part for part in PARTS if part not in recipe]
    if lost:
        raise InputError(
            f"{Path(run) / 'recipe.resolved.yaml'} must be a whole recipe, and lacks "
            f"{', '.join(map(repr, lost))}; run the recipe again with --force"
        )
    names = list(result.record["classes"]["names"])
    files = _files(images)
    place = named(device)
    net = encoder(as_key(encoder_settings(recipe)), encoder_identity(recipe["encoder"]), place)
    kind = "tokens" if reads_tokens(recipe["head"]["name"]) else recipe["encoder"]["features"]
    sentences = ("{}",)  # only a start as well: what a head makes of the names is with its weights
    epochs, seed = recipe["training"]["epochs"], recipe["seed"]
    task = Task(net, kind, names, (), sentences, place, epochs, seed, False)
    tuning: Tuning = component(catalogue.TUNINGS, recipe["tuning"])()
    how = recipe["encoder"]
    split = Split(files, np.zeros(len(files), np.int64))  # labels nobody knows; the predictions do not use them
    split = resized_split(split, how.get("resized", 0), keep=False)
    try:
        head = tuning.head(task, partial(_head, recipe["head"], net, net.width(kind), len(names))).to(place)
        model = make_model(recipe, head, _tail(result, recipe)).to(place)
        load_weights(Path(run) / "head.safetensors", head if model.plain else model, net.fingerprint)
        decoder: Decoder = how.get("decoder", "pil")
        listed_images = PixelSource(split, [net.transform], task.device, decoder)
        as_kept: Decoder = "pil" if how["cache"] else decoder
        features_of = ImageSource(split, net, kind, [net.transform], task.device, as_kept)
        found = predict(model, listed_images if tuning.reads_pixels else features_of, BATCH)
    finally:
        tuning.close()
    return pd.DataFrame(
        {
            "image": [str(files.root / files.name(row)) for row in range(len(files))],
            "predicted": [names[label] for label in found.predicted],
            "confidence": found.confidence,
        }
    )


def _head(section: dict[str, Any], net: Encoder, width: int, num_classes: int) -> Head:
    """The run's head, blank: the directions are only a start for the trained weights to replace."""
    name = str(section["name"])
    own = {"scale": net.logit_scale} if name == "text" else settings(section)
    return create_head(name, width, num_classes, torch.zeros(num_classes, width), **own)


def _tail(result: RunResult, recipe: dict[str, Any]) -> LongTail:
    """The training counts of the run, with its groups."""
    groups = DEFAULT_GROUPS | recipe["evaluation"]["groups"]
    counts, names = result.record["classes"]["train_counts"], result.record["classes"]["names"]
    return LongTail(counts, names, groups["many"], groups["few"], recipe["data"]["allow_empty"])


def _files(images: Sequence[str | Path]) -> FileImages:
    found: list[Path] = []
    for image in map(Path, images):
        if not image.exists():
            raise InputError(f"no such image or folder: {image}")
        below = sorted(p for p in image.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES) if image.is_dir() else [image]
        found += below
    if not found:
        raise InputError(f"no images ({', '.join(sorted(IMAGE_SUFFIXES))}) in {', '.join(map(str, images))}")
    files = FileImages(Path(), tuple(map(str, found)))
    wrong = unreadable(files)
    if wrong:
        shown = "\n".join(f"  - {files.name(row)}: {reason}" for row, reason in wrong.items())
        raise InputError(f"{len(wrong)} image{'s' if len(wrong) > 1 else ''} cannot be read:\n{shown}")
    return files
