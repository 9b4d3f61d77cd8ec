"""From a recipe's text anchor to the names it is about, and their features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from imbalance_vlm.balancing.regularizers.text_anchor import TextAnchor, templates_of
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import PromptHead


def anchor_for(settings: Mapping[str, Any], head: Head, task: Task) -> TextAnchor:
    """The regularizer that a recipe's section asks for.

    Args:
        settings: keyword arguments of `TextAnchor`.
        head: of the run.
        task: gives the names and the sentences.

    Raises:
        InputError: a head that learns no text, novel names where there are none, or names of other classes under a
            context for each class.
    """
    blank = TextAnchor(None, None, **{**settings, "names": "base"})
    names, target = settings.get("names", "base"), blank.target
    if not isinstance(head, PromptHead):
        raise InputError(
            "regularizer 'text_anchor' needs a head that learns text; set tuning to a method that does, such as "
            "{name: prompt, method: coop}"
        )
    templates = templates_of(task.templates, target)
    if names == "base":
        # The mean over all sentences is what the objective has of the frozen tower anyway.
        frozen = None if target == "ensemble" else task.encoder.text_features(task.class_names, templates)
        return TextAnchor(None, frozen, **settings)
    others = _novel(task) if names == "novel" else external_names(head, task, blank.external)
    return TextAnchor(head.text_of(others), task.encoder.text_features(others, templates), **settings)


def _novel(task: Task) -> Sequence[str]:
    if not task.novel_names:
        raise InputError(
            "regularizer 'text_anchor' with names 'novel' needs classes that are tested and never trained, got none; "
            "set data.classes to base, or names to external"
        )
    return task.novel_names


def external_names(head: PromptHead, task: Task, count: int) -> list[str]:
    """Names of ImageNet classes that are neither trained nor tested here, and short enough; drawn by the run's seed.

    Raises:
        InputError: more than there are.
    """
    from open_clip import IMAGENET_CLASSNAMES

    own = {name.replace("_", " ").lower() for name in (*task.class_names, *task.novel_names)}
    others = sorted({name for name in IMAGENET_CLASSNAMES if name.lower() not in own})
    fitting = head.prompted.fitting(others, head.prompt()[0].shape[-2])
    if len(fitting) < count:
        raise InputError(
            f"`external` of regularizer 'text_anchor' must be at most {len(fitting)}, the ImageNet names that are "
            f"not in the dataset and not too long for the text tower, got {count}"
        )
    order = torch.randperm(len(fitting), generator=torch.Generator().manual_seed(task.seed))
    return [fitting[number] for number in order[:count].tolist()]
