"""Irrelevant-text filtering and attribute enhancement. Reconstruction, not verified against the authors' code.

[0] Fu, He, Ding, Cao, Wang. Uniformly Distributed Category Prototype-Guided Vision-Language Framework for Long-Tail
    Recognition. arXiv 2308.12522, 2023. (no code is public)

Each class c has descriptions x_ck, and t_c stands for the class itself (the feature of its name, or its mean image).

    score_ck = cos(x_ck, t_c) - max_{c' != c} cos(x_ck, t_c')
    w_ck = 1 for the M highest of class c, r for the rest                            filter
    a_ck = w_ck exp(cos(x_ck, q_c) / T) / sum_l w_cl exp(cos(x_cl, q_c) / T)         attention
    text feature of c = sum_k a_ck x_ck / |...|                                      pool

A description that fits another class as well says nothing about its own; one that fits its own best says most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.components.ranges import Count, NonNegative, Positive
from imbalance_vlm.components.settings import mistake
from imbalance_vlm.errors import InputError

BLOCK_ROWS = 512
"""Descriptions compared with all classes at a time: 512 x 8142 similarities are 17 MB."""


@torch.no_grad()
def description_scores(
    features: Tensor, class_features: Tensor, mask: Tensor | None = None, block_rows: int = BLOCK_ROWS
) -> Tensor:
    """(C, D) similarity to the own class less that to the nearest other; -inf where there is no description.

    The memory beside the arguments and a normalised copy of them is block_rows x C numbers.

    Args:
        features: (C, D, d) of the descriptions.
        class_features: (C, d) of the classes.
        mask: (C, D) true where there is a description; None: everywhere.
        block_rows: descriptions at a time.

    Raises:
        InputError: shapes that do not fit, a single class, or a class without any description.
    """
    mask = _checked(features, class_features, "class_features", mask)
    if len(features) < 2:
        raise InputError("`features` must hold at least 2 classes, got 1; a single one has no other to be told from")
    num_classes, slots, _ = features.shape
    classes = F.normalize(class_features, dim=-1)
    flat = F.normalize(features, dim=-1).flatten(0, 1)  # (C D, d)
    own = torch.arange(num_classes, device=flat.device).repeat_interleave(slots)  # (C D,)
    found = []
    for rows, label in zip(flat.split(block_rows), own.split(block_rows), strict=True):
        cosine = rows @ classes.t()  # (b, C)
        hit = cosine.gather(1, label[:, None])
        rival = cosine.scatter(1, label[:, None], -torch.inf).amax(1, keepdim=True)
        found.append((hit - rival).squeeze(1))
    return torch.cat(found).view(num_classes, slots).masked_fill(~mask, -torch.inf)


def filter_descriptions(
    features: Tensor,
    class_features: Tensor,
    keep: Count,
    mask: Tensor | None = None,
    *,
    rest: NonNegative = 0.0,
    block_rows: Count = BLOCK_ROWS,
) -> Tensor:
    """(C, D) weights: 1 for the `keep` descriptions of each class with the highest score, `rest` for its others.

    Of two with the same score the first is kept; where there is no description the weight is 0.

    Args:
        features: (C, D, d) of the descriptions.
        class_features: (C, d) of the classes: the features of their plain names, or their mean image features.
        keep: M; a class with fewer keeps all it has.
        mask: (C, D) true where there is a description; None: everywhere.
        rest: r, in [0, 1]: weight of what is not kept.
        block_rows: descriptions compared with all classes at a time.

    Raises:
        InputError: an argument out of range, shapes that do not fit, or a class without any description.

    >>> classes = torch.eye(2)
    >>> features = torch.tensor([[[1.0, 0.1], [1.0, 1.0]], [[1.0, 0.9], [0.0, 1.0]]])
    >>> filter_descriptions(features, classes, 1, rest=0.25).tolist()
    [[1.0, 0.25], [0.25, 1.0]]
    """
    _check(keep=(Count, keep), rest=(NonNegative, rest), block_rows=(Count, block_rows))
    if rest > 1:
        raise InputError(f"`rest` must be at most 1, the weight of what is kept, got {rest:g}")
    scores = description_scores(features, class_features, mask, block_rows)  # (C, D)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(scores.shape[1], device=order.device).expand_as(order)
    )
    weights = torch.where(rank < keep, 1.0, rest).to(features.dtype)
    return weights.masked_fill(scores.isneginf(), 0.0)


def pool_descriptions(
    features: Tensor, weights: Tensor, query: Tensor | None = None, *, temperature: Positive = 0.1
) -> Tensor:
    """(C, d) unit text features: the attention-weighted mean of each class's unit descriptions.

    Args:
        features: (C, D, d) of the descriptions.
        weights: (C, D), such as those of `filter_descriptions`; 0 leaves a description out.
        query: (C, d) what the attention looks for, q: the features of the classes. None: the weights alone count.
        temperature: T of the attention.

    Raises:
        InputError: an argument out of range, shapes that do not fit, or a class whose weights are all 0.
    """
    _check(temperature=(Positive, temperature))
    if weights.shape != features.shape[:2]:
        raise InputError(f"`weights` must be one number a description, {_told(features[..., 0])}, got {_told(weights)}")
    if not bool((weights >= 0).all()):
        raise InputError(f"`weights` must be >= 0, got {float(weights.min()):g}")
    _checked(features, query, "query", weights > 0)
    unit = F.normalize(features, dim=-1)
    attention = weights.to(unit.dtype).log()  # (C, D)
    if query is not None:
        attention = attention + (unit @ F.normalize(query, dim=-1)[:, :, None]).squeeze(2) / temperature
    return F.normalize((attention.softmax(1)[:, :, None] * unit).sum(1), dim=-1)


def _checked(features: Tensor, classes: Tensor | None, name: str, mask: Tensor | None) -> Tensor:
    """The mask, once everything is known to fit."""
    if features.ndim != 3 or 0 in features.shape or not features.is_floating_point():
        raise InputError(f"`features` must be (C, D, d) floating-point numbers, got {_told(features)} {features.dtype}")
    wanted = (features.shape[0], features.shape[2])
    if classes is not None and classes.shape != wanted:
        raise InputError(f"`{name}` must be one row a class, {wanted}, got {_told(classes)}")
    if mask is None:
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    if mask.shape != features.shape[:2] or mask.dtype != torch.bool:
        raise InputError(
            f"`mask` must be true or false of shape {tuple(features.shape[:2])}, got {_told(mask)} {mask.dtype}"
        )
    if not bool(mask.any(1).all()):
        bare = int((~mask.any(1)).nonzero()[0])
        raise InputError(f"every class needs a description that counts, class {bare} has none; add its plain name")
    return mask


def _told(given: Tensor) -> str:
    return str(tuple(given.shape))


def _check(**given: tuple[object, object]) -> None:
    wrong = [f"`{name}` {said}" for name, (kind, value) in given.items() if (said := mistake(kind, value))]
    if wrong:
        raise InputError("; ".join(wrong))
