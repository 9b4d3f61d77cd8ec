"""Which prototype is whose: matched once, to what is known of the classes, and fixed from then on.

[0] Li, Cao, Yuan, Fan, Yang, Feris, Indyk, Katabi. Targeted Supervised Contrastive Learning for Long-Tailed
    Recognition. CVPR 2022. (Hungarian matching of classes to uniform prototypes)

    pi = argmax sum_c cos(k_c, p_pi(c)),   k_c text features, class means, or centroids that move:
    k_c <- mu k_c + (1 - mu) mean of the unit embeddings of class c in the batch, mu .9

Differs from [0] in: the matching is made once, not at every step. For frozen features the moving centroids are the
class means, known before the first step; they are for an encoder that is trained too.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from imbalance_vlm.balancing.prototypes import Kind, assign_prototypes, create_prototypes
from imbalance_vlm.components.ranges import Natural, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.prototype_guided import moved_means


def prototypes_for(
    num_classes: int, dim: int, class_features: Tensor | None = None, kind: Kind = "auto", seed: Natural = 0
) -> Tensor:
    """(C, d) uniform prototypes, that of class c in row c, float32.

    The prototypes of the last two calls are kept: the runs of a study search for them once.

    Args:
        num_classes: C.
        dim: d.
        class_features: (C, d) text features or mean features of the classes to match the prototypes to; None leaves
            them in the order they have.
        kind: as in `create_prototypes`.
        seed: of their rotation.

    Raises:
        InputError: what `create_prototypes` and `assign_prototypes` refuse.

    >>> prototypes_for(3, 2, torch.tensor([[1.0, 0.0], [-0.5, 0.9], [-0.5, -0.9]])).shape
    torch.Size([3, 2])
    """
    made = _prototypes(num_classes, dim, kind, seed)
    if class_features is None:
        return made.clone()
    return made[assign_prototypes(made, class_features)].to(class_features.device)


@lru_cache(maxsize=2)
def _prototypes(num_classes: int, dim: int, kind: Kind, seed: int) -> Tensor:
    return create_prototypes(num_classes, dim, kind=kind, seed=seed)


class PrototypeAssigner(nn.Module):
    """Class centroids that follow the embeddings for a while, then a matching that is for good.

    >>> assigner = PrototypeAssigner(torch.eye(2))
    >>> assigner.observe(torch.tensor([[0.1, 1.0], [1.0, 0.2]]), torch.tensor([0, 1]))
    >>> assigner.assign().tolist()
    [[0.0, 1.0], [1.0, 0.0]]

    Everything it knows is in its state_dict, also whether the matching is made.

    Args:
        prototypes: (C, d) unit rows in any order.
        momentum: mu, of the centroids.
    """

    prototypes: Tensor
    centroids: Tensor
    assigned: Tensor

    def __init__(self, prototypes: Tensor, *, momentum: Share = 0.9) -> None:
        super().__init__()
        if prototypes.ndim != 2:
            raise InputError(f"`prototypes` must be a matrix (C, d), got {tuple(prototypes.shape)}")
        self.register_buffer("prototypes", prototypes.detach().clone())
        self.register_buffer("centroids", torch.zeros_like(self.prototypes))  # zero: no image of the class yet
        self.register_buffer("assigned", torch.tensor(False))
        self.momentum = momentum

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        """Move the centroids by a batch, embeddings (N, d) and targets (N,)."""
        self.centroids.copy_(moved_means(self.centroids, embeddings, targets, self.momentum))

    def assign(self) -> Tensor:
        """(C, d) prototypes, that of class c in row c: matched at the first call, the same ever after.

        A class not seen by then gets what the others leave.
        """
        if not self.assigned:
            order = assign_prototypes(self.prototypes, self.centroids)
            self.prototypes.copy_(self.prototypes[order.to(self.prototypes.device)])
            self.assigned.fill_(True)
        return self.prototypes
