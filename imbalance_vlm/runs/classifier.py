"""A trained classifier: saved to the folder of its run, loaded from it, and applied to new images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

from imbalance_vlm.balancing.corrected import CorrectedClassifier
from imbalance_vlm.components import catalogue
from imbalance_vlm.data.dataset import IMAGE_KINDS, FileImages, Split
from imbalance_vlm.data.loader import Decoder
from imbalance_vlm.data.readability import describe_unreadable, unreadable
from imbalance_vlm.data.reader import OnError
from imbalance_vlm.data.resized_cache import resized_split
from imbalance_vlm.data.walk import LINKED_TWICE, Identity, describe_passed_over, file_identity, walk
from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.encoders.sources import ImageSource, PixelSource, Source
from imbalance_vlm.errors import InputError
from imbalance_vlm.evaluation.evaluate import evaluate
from imbalance_vlm.files import expanded, read_json, write_json, write_text
from imbalance_vlm.long_tail import LongTail
from imbalance_vlm.progress import note
from imbalance_vlm.recipe.load import read_yaml
from imbalance_vlm.results.result import read_result
from imbalance_vlm.runs.build import feature_kind, make_context, make_head, make_model, make_tuning
from imbalance_vlm.runs.resources import Resources
from imbalance_vlm.runs.splits import BlankStarts
from imbalance_vlm.training.checkpoints import WEIGHTS_FILE, load_weights, save_weights
from imbalance_vlm.training.devices import resolve_device
from imbalance_vlm.tuning.base import Tuning

if TYPE_CHECKING:
    import pandas as pd

RECIPE_FILE = "recipe.resolved.yaml"
CLASSES_FILE = "classes.json"
SECTIONS = ("data", "encoder", "tuning", "head", "balancing", "training", "evaluation", "seed")
"""The keys of a recipe that rebuilding a classifier needs."""
_CLASSES = {
    "names": list[str],
    "train_counts": list[int],
    "group_counts": list[int] | None,
    "templates": list[str] | None,
}
"""What is saved of the classes."""
_REMEDY = "run the recipe again with --force"
BATCH = 256


class TrainedClassifier:
    """The model of a finished run, with its class names and its recipe.

    Use it as a context manager, or call `close`: until then, what the tuning trained is part of the encoder.

    Args:
        recipe: the complete recipe.
        templates: sentences with one `{}` each, around the class names.
        long_tail: training counts and groups, with the class names.
        encoder: on its device.
        tuning: the tuning that made the head; closing it restores the encoder.
        model: head, second stage and correction.
        device: the device of encoder and model.

    >>> with TrainedClassifier.load("runs/photos/seed0-1234") as classifier:  # doctest: +SKIP
    ...     classifier.predict(["new/1.jpg", "new/2.jpg"])
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        templates: Sequence[str],
        long_tail: LongTail,
        encoder: Encoder,
        tuning: Tuning,
        model: CorrectedClassifier,
        device: torch.device,
    ) -> None:
        self.recipe = recipe
        self.templates = tuple(templates)
        self.long_tail = long_tail
        self.encoder = encoder
        self.tuning = tuning
        self.model = model
        self.device = device

    @classmethod
    def load(
        cls, folder: str | Path, device: str | torch.device = "auto", resources: Resources | None = None
    ) -> TrainedClassifier:
        """The classifier of a finished run, or one that `save` wrote.

        Args:
            folder: the run's folder.
            device: "auto" (a GPU where there is one), "cpu", "cuda", ...
            resources: shared with other classifiers or runs; None for new ones.

        Raises:
            InputError: no finished run, or an encoder that is not the one the run was trained on.
        """
        catalogue.load_plugins()
        folder = expanded(folder)
        recipe, classes = _saved(folder)
        groups = recipe["evaluation"]["groups"]
        long_tail = LongTail(
            classes["train_counts"],
            classes["names"],
            groups.get("many", 100),
            groups.get("few", 20),
            recipe["data"]["allow_empty"],
            classes.get("group_counts"),
        )
        templates = classes.get("templates") or ("{}",)
        resources = resources or Resources()
        device = resolve_device(device) if isinstance(device, str) else device
        encoder = resources.encoder(recipe["encoder"], device)
        tuning = make_tuning(recipe)
        try:
            context = make_context(
                recipe, encoder, device, resources, class_names=long_tail.class_names, templates=templates
            )
            starts = BlankStarts(long_tail.num_classes, encoder.width(feature_kind(recipe)))
            model = make_model(recipe, make_head(recipe, context, tuning, starts), long_tail, device)
            classifier = cls(recipe, templates, long_tail, encoder, tuning, model, device)
            if classifier._weights().state_dict():
                load_weights(folder / WEIGHTS_FILE, classifier._weights(), encoder.fingerprint)
        except BaseException:
            tuning.close()
            raise
        model.eval()
        return classifier

    def save(self, folder: Path, digest: str = "") -> None:
        """Write the recipe, the classes and the weights, with the fingerprint of the encoder that they belong to.

        Args:
            folder: created if it does not exist.
            digest: hash of the recipe, its data and weights when the run began.
        """
        write_text(folder / RECIPE_FILE, yaml.safe_dump(plain(self.recipe), sort_keys=False))
        classes = {
            "names": self.class_names,
            "templates": self.templates,
            "train_counts": self.long_tail.counts,
            "group_counts": self.long_tail.group_counts,
        }
        write_json(folder / CLASSES_FILE, classes)
        if self._weights().state_dict():
            header = {"recipe": self.recipe["name"], "recipe_hash": digest, "base": self.encoder.fingerprint}
            save_weights(folder / WEIGHTS_FILE, self._weights(), header)

    def _weights(self) -> torch.nn.Module:
        """The module whose weights are saved."""
        return self.model.head if self.model.plain else self.model

    @property
    def class_names(self) -> tuple[str, ...]:
        """(C,) names."""
        return tuple(self.long_tail.class_names)

    def predict(self, images: Sequence[str | Path] | FileImages, on_error: OnError = "raise") -> pd.DataFrame:
        """Classify images.

        Args:
            images: image files, or folders of them (with all folders below); or the `images` of `find_images`.
            on_error: what an image that cannot be read does: "raise" lists all of them, "skip" leaves them out.

        Returns:
            One row per image: `image`, `predicted` (a class name), `confidence` (its probability, in [0, 1]).

        Raises:
            InputError: no images, or images that cannot be read.
        """
        import pandas as pd

        files = images if isinstance(images, FileImages) else find_images(images, on_error).images
        predictions = evaluate(self.model, self.source(files), (), BATCH)
        return pd.DataFrame(
            {
                "image": [str(files.root / files.name(row)) for row in range(len(files))],
                "predicted": [self.class_names[label] for label in predictions.predicted],
                "confidence": predictions.confidence,
            }
        )

    def source(self, files: FileImages) -> Source:
        """The images as the head reads them."""
        caching = self.recipe["encoder"]
        labels = np.zeros(len(files), np.int64)  # unknown, and not used by predictions
        split = resized_split(Split(files, labels), caching.get("resized", 0), keep=False)
        views = [self.encoder.preprocessing]
        if self.tuning.reads_pixels:
            return PixelSource(split, views, self.device, caching.get("decoder", "pil"))
        # Features in the cache are always computed from images that PIL has decoded.
        decoder: Decoder = "pil" if caching["cache"] else caching.get("decoder", "pil")
        return ImageSource(split, self.encoder, feature_kind(self.recipe), views, self.device, decoder)

    def close(self) -> None:
        """Restore the encoder."""
        self.tuning.close()

    def __enter__(self) -> TrainedClassifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def predict_images(
    run: str | Path, images: Sequence[str | Path], device: str = "auto", on_error: OnError = "raise"
) -> pd.DataFrame:
    """Classify images with the model of a finished run; see `TrainedClassifier.predict`.

    A note says how many images are classified, and what is passed over.

    Args:
        run: the folder of a finished run.
        images: image files, or folders of them (with all folders below).
        device: where the model runs: "auto" (a GPU where there is one), "cpu", "cuda", ...
        on_error: what an image that cannot be read does: "raise" lists all of them, "skip" leaves them out.

    Returns:
        One row per image: `image`, `predicted` (a class name), `confidence` (its probability, in [0, 1]).

    Raises:
        InputError: no finished run, other weights of the encoder, no images, or images that cannot be read.
    """
    _saved(expanded(run))  # a wrong folder or image is reported before the encoder is loaded, which may take a minute
    selection = find_images(images, on_error)
    note(selection.summary)
    with TrainedClassifier.load(run, device) as classifier:
        return classifier.predict(selection.images)


def _saved(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The recipe of a saved classifier, and its classes, which earlier versions only wrote to result.json.

    Raises:
        InputError: no saved classifier, or a recipe that is not complete.
    """
    classes = read_json(folder / CLASSES_FILE, _CLASSES, _REMEDY)
    if not classes:
        result = read_result(folder)
        if result is None:
            raise InputError(f"`run` must be the folder of a finished run (with result.json), got {str(folder)!r}")
        classes = result.record["classes"]
    recipe = read_yaml(folder / RECIPE_FILE)
    missing = [key for key in SECTIONS if key not in recipe]
    if missing:
        raise InputError(
            f"{folder / RECIPE_FILE} must be a complete recipe, and lacks {', '.join(map(repr, missing))}; {_REMEDY}"
        )
    return recipe, classes


@dataclass(frozen=True, eq=False)
class FoundImages:
    """The images in some places.

    Args:
        images: those that can be read.
        unreadable: those that cannot, by name with the reason.
        passed_over: number of other files, by reason.
    """

    images: FileImages
    unreadable: Mapping[str, str]
    passed_over: Mapping[str, int]

    @property
    def summary(self) -> str:
        """What became of all files, in one line; then the images that cannot be read."""
        parts = [f"{len(self.images):,} image{'s' * (len(self.images) > 1)} classified"]
        parts += [f"{len(self.unreadable):,} skipped"] if self.unreadable else []
        parts += [describe_passed_over(self.passed_over)] if self.passed_over else []
        return "; ".join(parts) + (f"\n{describe_unreadable(self.unreadable)}" if self.unreadable else "")


def find_images(places: Sequence[str | Path], on_error: OnError = "raise") -> FoundImages:
    """The images among these files and folders. A file that is named itself is an image, whatever its suffix.

    Args:
        places: files, and folders that are searched with all folders below.
        on_error: what an image that cannot be read does: "raise" lists all of them, "skip" leaves them out.

    Raises:
        InputError: a place that does not exist, no images at all, or images that cannot be read.
    """
    paths: dict[Identity, str] = {}
    passed_over: Counter[str] = Counter()
    for place in dict.fromkeys(map(expanded, places)):
        if not place.exists():
            raise InputError(f"no such image or folder: {place}")
        if not place.is_dir():
            listed = {str(place): file_identity(str(place))}
        else:
            below = walk(place)
            passed_over += below.passed_over
            listed = {str(place / path): identity for path, identity in below.images.items()}
        for path, identity in listed.items():
            if paths.setdefault(identity, path) != path:
                passed_over[LINKED_TWICE] += 1
    if not paths:
        words = describe_passed_over(passed_over)
        raise InputError(f"no images ({IMAGE_KINDS}) in {', '.join(map(str, places))}{'; ' * bool(words)}{words}")
    files = FileImages(Path(), tuple(paths.values()))
    bad_rows = unreadable(files)
    reasons = {files.name(row): reason for row, reason in bad_rows.items()}
    if reasons and (on_error == "raise" or len(reasons) == len(files)):
        raise InputError(f"{describe_unreadable(reasons)}\nReplace them, or set on_error to skip to leave them out")
    readable = files.take(np.array([row for row in range(len(files)) if row not in bad_rows], np.int64))
    return FoundImages(readable, reasons, passed_over)


def plain(value: Any) -> Any:
    """Nested values as plain mappings, lists and strings, for YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
