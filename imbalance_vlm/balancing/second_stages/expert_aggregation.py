"""Weights of the experts by the agreement of two views: SADE's test-time aggregation.

[0] Zhang, Hooi, Hong, Feng. Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition.
    NeurIPS 2022. Section 4.2.
[1] github.com/Vanint/SADE-AgnosticLT, test_training_cifar.py and its configurations: SGD with Nesterov momentum .9,
    weight decay 5e-4, lr .1 (CIFAR-100) or .025 (ImageNet), batches of 128, 5 epochs

    z(x) = sum_e v_e z_e(x),   v = softmax(a),   max_a mean_x cos(softmax z(x'), softmax z(x''))

x' and x'' are random views of a test image. An expert's predictions are more stable on the classes that it is good at,
so the experts that suit the frequent classes of the test images get larger weights. Nothing else is trained; as in [1],
training ends once a weight is below .05.

Differs from [1] in: the views are cached embeddings, the same two in every epoch; the order of the images depends
only on torch's seed and the epoch.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.balancing.samplers.base import epoch_generator
from imbalance_vlm.balancing.second_stages.base import SecondStage, Stage, StageTraining
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.experts import EXPERTS

MIN_WEIGHT = 0.05
"""Training ends once the weight of an expert is below this, so that none vanishes."""


@runtime_checkable
class HasExperts(Protocol):
    """A head with several linear classifiers on its embedding."""

    def experts(self) -> tuple[Tensor, Tensor]:
        """Weights (3, C, d) and biases (3, C)."""


def mixed(logits: Tensor, scores: Tensor) -> Tensor:
    """(N, C) logits of the mixture by softmax(scores (3,)) of the experts' logits (N, 3, C)."""
    return torch.einsum("e,nec->nc", scores.softmax(0), logits)


def agreement(first: Tensor, second: Tensor, scores: Tensor) -> Tensor:
    """(N,) cosine of the mixture's class probabilities on two views, each the experts' logits (N, 3, C)."""
    return F.cosine_similarity(mixed(first, scores).softmax(1), mixed(second, scores).softmax(1), dim=1)


class ExpertAggregation(SecondStage):
    """The head's experts, mixed by weights learned on the test images, without their labels.

    Transductive: `fit` reads the test images (two random views of each), but not their labels. Report this with the
    results. The experts of a head with adapters are stored as (3, C, 3 w) numbers, including zeros.

    Args:
        width: d of the embeddings.
        num_classes: C.
        settings: how the three scores are trained on the test images.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, width: int, num_classes: int, *, settings: StageTraining = StageTraining(epochs=5, batch_size=128)
    ) -> None:
        super().__init__(width, num_classes)
        self.settings = settings
        self.register_buffer("weight", torch.zeros(EXPERTS, num_classes, width))
        self.register_buffer("bias", torch.zeros(EXPERTS, num_classes))
        self.scores = nn.Parameter(torch.zeros(EXPERTS))  # a

    def fit(self, stage: Stage) -> dict[str, float]:
        """Learn the weights; they are returned as weight_1 to weight_3.

        Raises:
            InputError: a head without experts.
        """
        head: object = stage.head
        if not isinstance(head, HasExperts):
            raise InputError(
                f"`stage.head` must have several experts to aggregate, got {type(head).__name__}; set head: experts "
                "and balancing.loss: sade"
            )
        with torch.no_grad():
            weight, bias = head.experts()
            self.to(weight)
            self.weight.copy_(weight)
            self.bias.copy_(bias)
            self.scores.zero_()
        first, second = stage.test_views()
        with torch.enable_grad():
            self._learn(first, second)
        return {f"weight_{number}": round(share, 4) for number, share in enumerate(self.shares().tolist(), start=1)}

    def shares(self) -> Tensor:
        """(3,) weights of the experts."""
        return self.scores.detach().softmax(0)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, d): the mixture is one linear classifier."""
        shares = self.scores.softmax(0)
        weight = torch.einsum("e,ecd->cd", shares, self.weight)
        return F.linear(embeddings, weight, shares @ self.bias)

    def _learn(self, first: Tensor, second: Tensor) -> None:
        optimizer = torch.optim.SGD([self.scores], lr=self.settings.lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
        for epoch in range(self.settings.epochs):
            order = torch.randperm(len(first), generator=epoch_generator(torch.initial_seed(), epoch))
            for rows in order.to(first.device).split(self.settings.batch_size):
                with torch.no_grad():
                    first_logits, second_logits = self._per_expert(first[rows]), self._per_expert(second[rows])
                loss = -agreement(first_logits, second_logits, self.scores).mean()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if float(self.shares().min()) < MIN_WEIGHT:
                break
        self.scores.grad = None

    def _per_expert(self, embeddings: Tensor) -> Tensor:
        """(B, 3, C) logits of the experts."""
        flat = F.linear(embeddings, self.weight.flatten(0, 1), self.bias.flatten())  # (B, 3 C)
        return flat.unflatten(1, (EXPERTS, self.num_classes))
