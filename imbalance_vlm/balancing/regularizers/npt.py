"""NPT: text features spread like a simplex, and images that are aligned with them. Reconstruction, not verified against
the authors' code.

[0] Zhu, Li, Zhang, Yuan, Shao, Liu, Kuang, Li, Wu. Understanding Prompt Tuning for V-L Models Through the Lens of
    Neural Collapse. arXiv 2306.15955, 2023. (no code is public)
[1] Wang, Isola. Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere.
    ICML 2020. (their exp(-2 |x - y|^2) is temperature .25)

    R = lmc * LMC + mmi * MMI
    LMC = mean over k != k' of (cos(t_k, t_k') + 1/(K-1))^2              language-modality collapse, "simplex"
    LMC = T mean_k log mean_{k' != k} exp(cos(t_k, t_k') / T)            the same aim for any K, "uniformity"
    MMI = mean_k (1 - cos(h_k, t_k))                                     multi-modality isomorphism

t are the learned text features of all K classes. h_k is the mean unit embedding of class k, in the batch or over the
steps so far, and MMI is averaged over the classes that have one, whatever their number of images.

A simplex of K corners needs K <= d + 1, and where it exists its Gram matrix is no larger than (d + 1)^2. For more
classes the squared form has no zero and is refused. Uniformity, a soft maximum of the cosines, has its minimum at the
simplex if one exists, and is computed in blocks, without the K x K matrix. The factor T keeps its gradient as large as
that of the squared form.

Differs from [0] in: the weights are not known and are 1 each; the average over steps, and uniformity, are additions.
The text features are not centred, as in [0], so that LMC also removes the direction that all of them share. The metrics
of `imbalance_vlm.evaluation.geometry` centre them, and so does LMC with `centre`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from imbalance_vlm.balancing.prototypes import uniformity
from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.components.ranges import NonNegative, Positive, Share
from imbalance_vlm.errors import InputError

Form = Literal["simplex", "uniformity"]


def simplex_gap(unit: Tensor) -> Tensor:
    """LMC of unit rows (K, d) -> (), K <= d + 1: 0 at a simplex, and only there."""
    count = len(unit)
    gap = (unit @ unit.t() + 1.0 / (count - 1)).fill_diagonal_(0.0)  # (K, K)
    return gap.square().sum() / (count * (count - 1))


class _Uniformity(torch.autograd.Function):
    """LMC in the form "uniformity", (K, d) -> (); value and gradient are computed together, without K x K numbers."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, temperature: float) -> Tensor:
        value, gradient = uniformity(unit, temperature)
        ctx.save_for_backward(gradient)
        ctx.temperature = temperature
        return unit.new_tensor(temperature * (value - math.log(len(unit) - 1)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * ctx.temperature * gradient, None


def batch_means(embeddings: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Mean unit embedding of each class of a batch (K, d), 0 if it has none, and which classes it contains (K,)."""
    unit = F.normalize(embeddings, dim=-1)
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add(0, targets, unit)
    sizes = unit.new_zeros(num_classes).index_add(0, targets, torch.ones_like(unit[:, 0]))
    return sums / sizes.clamp_min(1.0)[:, None], sizes.gt(0)


def isomorphism(means: Tensor, present: Tensor, text: Tensor) -> Tensor:
    """MMI of class means (K, d), of which (K,) are `present`, and text features (K, d) -> ()."""
    distances = 1.0 - F.cosine_similarity(means, text, dim=-1)  # (K,)
    return torch.where(present, distances, 0.0).sum() / present.sum()


def learned_text(outputs: StepOutputs, name: str) -> Tensor:
    """The text features that are being learned, at least in float32.

    Raises:
        InputError: there are none, or their shape does not fit the embeddings.
    """
    if outputs.text is None:
        raise InputError(
            f"regularizer '{name}' needs text features that are learned, got none; use a prompt method that trains text"
        )
    if outputs.text.ndim != 2 or outputs.embeddings.ndim != 2 or outputs.text.shape[1] != outputs.embeddings.shape[1]:
        raise InputError(
            f"regularizer '{name}' needs `text` (C, d) and `embeddings` (N, d) of one width, got "
            f"{tuple(outputs.text.shape)} and {tuple(outputs.embeddings.shape)}; use encoder.features 'embedding'"
        )
    if len(outputs.text) < 2:
        raise InputError(f"regularizer '{name}' needs at least 2 classes to tell apart, got {len(outputs.text)}")
    return outputs.text.to(torch.promote_types(outputs.text.dtype, torch.float32))


class NPT(Regularizer):
    """Text features spread over the sphere (LMC), and the images of a class aligned with its text (MMI).

    Where image features are frozen, MMI moves the text alone.

    Args:
        lmc: weight of LMC, which spreads the text features.
        mmi: weight of MMI, which aligns images with text features.
        form: form of LMC: "simplex" for up to d + 1 classes, "uniformity" for any number.
        temperature: temperature T of "uniformity"; at lower T, the closest classes count for more.
        centre: whether the mean text feature is subtracted before LMC computes cosines.
        momentum: momentum of an average of the class means over the steps, which includes classes that the batch lacks;
            0 uses the batch alone.

    Raises:
        InputError: a head that learns no text, text features of another width than the embeddings, or more classes
            than a simplex has corners.
    """

    means: Tensor
    known: Tensor

    def __init__(
        self,
        *,
        lmc: NonNegative = 1.0,
        mmi: NonNegative = 1.0,
        form: Form = "simplex",
        temperature: Positive = 0.25,
        centre: bool = False,
        momentum: Share = 0.0,
    ) -> None:
        super().__init__(1.0)
        self.lmc = lmc
        self.mmi = mmi
        self.form = form
        self.temperature = temperature
        self.centre = centre
        self.momentum = momentum
        self.register_buffer("means", torch.empty(0, 0))  # (K, d) after the first step
        self.register_buffer("known", torch.empty(0, dtype=torch.bool))  # (K,)

    def forward(self, outputs: StepOutputs) -> Tensor:
        text = learned_text(outputs, "npt")  # (K, d)
        means, present = batch_means(outputs.embeddings.to(text.dtype), outputs.targets, len(text))
        if self.momentum:
            means, present = self._averaged(means, present)
        term = self.mmi * isomorphism(means, present, text)
        return term + self.lmc * self._spread(text) if self.lmc else term

    def _spread(self, text: Tensor) -> Tensor:
        """LMC of text features (K, d) -> ()."""
        count, width = text.shape
        unit = F.normalize(text - text.mean(0) if self.centre else text, dim=-1)
        if self.form == "uniformity":
            spread: Tensor = _Uniformity.apply(unit, self.temperature)
            return spread
        if count > width + 1:
            raise InputError(
                f"regularizer 'npt' pulls {count} classes to a simplex, which in {width} dimensions has at most "
                f"{width + 1} corners; set its `form` to uniformity, or use regularizer 'cpt', whose simplexes are "
                "within clusters of classes"
            )
        return simplex_gap(unit)

    def _averaged(self, means: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Moving averages of the class means, updated by those of the batch, and which classes have one."""
        if self.means.shape != means.shape:
            self.means, self.known = means.new_zeros(means.shape), torch.zeros_like(present)
        old = self.means.to(means.dtype)
        mixed = torch.where(self.known[:, None], self.momentum * old + (1.0 - self.momentum) * means, means)
        averaged, known = torch.where(present[:, None], mixed, old), self.known | present
        if self.training:
            self.means, self.known = averaged.detach(), known
        return averaged, known

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("means", "known"):  # a new module does not know their sizes
            if (saved := state_dict.get(f"{prefix}{name}")) is not None:
                setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
