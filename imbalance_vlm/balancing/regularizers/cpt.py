"""CPT: simplexes within clusters of related classes. Reconstruction from notes on the paper.

[0] Guo, Li, Peng, Gao, Sheng, Yan. Cluster-Aware Neural Collapse Prompt Tuning for Long-Tailed Generalization of
    Vision-Language Models. CVPR 2026. (no code is public)

    S_1..S_M = k-means of the frozen text features, once
    TETF = 1/M sum_m sum over c != c' in S_m of (cos(t_c, t_c') + 1/(k_m - 1))^2,   k_m = |S_m|
    CC   = mean_c mean_{i in c} |f_i/|f_i| - t_c/|t_c||^2
    RS   = mean_c |t_c - t0_c|_1,   t0 the frozen text features
    R    = .25 TETF + .15 CC + .10 RS

A cluster of one class adds nothing to the sum, but counts in M. With M = 1 all classes form one simplex. CC's mean is
over the classes of the batch. By `pairs` "mean" TETF has the mean over c != c' of a cluster in place of the sum, so
that .25 has the same effect for clusters of any size.

Differs from [0] in: its TETF, the squared Frobenius norm, contains the diagonal, a constant. M is not given in [0]; the
default here is about 16 classes per cluster.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.regularizers.base import Regularizer, StepOutputs
from imbalance_vlm.balancing.regularizers.npt import learned_text, simplex_gap
from imbalance_vlm.balancing.regularizers.prototype_contrastive import class_balanced_mean
from imbalance_vlm.components.ranges import Count, NonNegative, Seed
from imbalance_vlm.errors import InputError

CLUSTER_SIZE = 16
"""Average number of classes per cluster if the number of clusters is not set."""

Pairs = Literal["mean", "sum"]


def cluster_classes(features: Tensor, clusters: int, seed: int) -> list[Tensor]:
    """Class indices of each cluster that k-means finds in unit rows (C, d), on the device of the rows.

    There are fewer than `clusters` if there are fewer distinct rows.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    rows = F.normalize(features.detach().double(), dim=-1).cpu().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for equal rows
        labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(rows)  # (C,)
    members = [torch.from_numpy(np.flatnonzero(labels == number)) for number in range(clusters)]
    return [indices.to(features.device) for indices in members if len(indices)]


def cluster_simplexes(text: Tensor, members: Sequence[Tensor], pairs: Pairs = "sum") -> Tensor:
    """TETF of text features (C, d) and the class indices of each cluster -> ()."""
    unit = F.normalize(text, dim=-1)
    total = unit.new_zeros(())
    for rows in members:
        if len(rows) > 1:
            gap = simplex_gap(unit.index_select(0, rows))
            total = total + (gap if pairs == "mean" else gap * (len(rows) * (len(rows) - 1)))
    return total / len(members)


def convergence(embeddings: Tensor, targets: Tensor, text: Tensor) -> Tensor:
    """CC of embeddings (N, d), targets (N,) and text features (C, d) -> ()."""
    differences = F.normalize(embeddings, dim=-1) - F.normalize(text, dim=-1).index_select(0, targets)  # (N, d)
    return class_balanced_mean(differences.square().sum(1), targets, len(text))


def rotation(text: Tensor, frozen: Tensor) -> Tensor:
    """RS of learned and frozen text features (C, d) -> ()."""
    return (text - frozen).abs().sum(1).mean()


class CPT(Regularizer):
    """Separates related classes, pulls images to their text features, and keeps these near the frozen ones.

    Args:
        tetf: weight of the simplexes within clusters.
        cc: weight of the distance of images to the text features of their class.
        rs: weight of the distance of text features to frozen ones.
        clusters: number of clusters M; null for about 16 classes per cluster.
        pairs: "sum" or "mean" over the pairs of a cluster.
        cluster_seed: seed of k-means.

    Raises:
        InputError: a head that learns no text, no frozen text, more clusters than classes,
            or a cluster of more classes than a simplex has corners.
    """

    def __init__(
        self,
        *,
        tetf: NonNegative = 0.25,
        cc: NonNegative = 0.15,
        rs: NonNegative = 0.10,
        clusters: Count | None = None,
        pairs: Pairs = "sum",
        cluster_seed: Seed = 0,
    ) -> None:
        super().__init__(1.0)
        self.tetf = tetf
        self.cc = cc
        self.rs = rs
        self.clusters = clusters
        self.pairs: Pairs = pairs
        self.cluster_seed = cluster_seed
        self._members: list[Tensor] | None = None  # not saved: a function of the frozen text and the seed

    def forward(self, outputs: StepOutputs) -> Tensor:
        text = learned_text(outputs, "cpt")  # (C, d)
        if outputs.frozen_text is None:
            raise InputError(
                "regularizer 'cpt' clusters the frozen text features and needs them, got none; use an encoder with a "
                "text tower"
            )
        if outputs.frozen_text.shape != text.shape:
            raise InputError(
                f"regularizer 'cpt' needs frozen text features of shape {tuple(text.shape)}, as the learned ones, got "
                f"{tuple(outputs.frozen_text.shape)}"
            )
        frozen = outputs.frozen_text.to(text.dtype)
        term = self.cc * convergence(outputs.embeddings.to(text.dtype), outputs.targets, text)
        term = term + self.rs * rotation(text, frozen)
        if self.tetf == 0:
            return term
        if self._members is None:
            self._members = self._clustered(frozen)
        return term + self.tetf * cluster_simplexes(text, self._members, self.pairs)

    def _clustered(self, frozen: Tensor) -> list[Tensor]:
        count, width = frozen.shape
        clusters = self.clusters or math.ceil(count / CLUSTER_SIZE)
        if clusters > count:
            raise InputError(
                f"`clusters` of regularizer 'cpt' must be at most the number of classes, {count}, got {clusters}; "
                "lower it, or leave it out"
            )
        members = cluster_classes(frozen, clusters, self.cluster_seed)
        largest = max(map(len, members))
        if largest > width + 1:
            raise InputError(
                f"regularizer 'cpt' pulls the {largest} classes of a cluster to a simplex, which in {width} dimensions "
                f"has at most {width + 1} corners; raise its `clusters`, which is {clusters}"
            )
        return members
