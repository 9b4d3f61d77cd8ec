"""Training of cRT and LWS: plain cross-entropy on draws of a sampler that the recipe chooses."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from imbalance_vlm.balancing.losses.cross_entropy import CrossEntropy
from imbalance_vlm.balancing.samplers.base import Sampler
from imbalance_vlm.balancing.second_stages.base import Stage, StageTraining
from imbalance_vlm.components.catalogue import SAMPLERS
from imbalance_vlm.components.ranges import Count
from imbalance_vlm.components.registry import offer


@dataclass(frozen=True, kw_only=True)
class DecoupledTraining(StageTraining):
    """How the classifier is trained after the embedding.

    Args:
        sampler: name of the sampler that draws the embeddings of an epoch.

    Raises:
        InputError: an unknown sampler, before the first stage is trained.
    """

    sampler: str = "class_aware"
    batch_size: Count = 512

    def __post_init__(self) -> None:
        SAMPLERS.get(self.sampler)

    def make_sampler(self, labels: Tensor, seed: int) -> Sampler:
        sampler: Sampler = SAMPLERS.make({"name": self.sampler}, offer(labels=labels, seed=seed))
        return sampler


def train_decoupled(module: nn.Module, stage: Stage, training: DecoupledTraining) -> None:
    """Train a module from embeddings to logits, in place."""
    stage.train_classifier(module, CrossEntropy(stage.long_tail), training.make_sampler, training)
