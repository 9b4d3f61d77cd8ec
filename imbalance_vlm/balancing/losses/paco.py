"""PaCo and GPaCo: parametric contrastive learning.

[0] Cui, Zhong, Liu, Yu, Jia. Parametric Contrastive Learning. ICCV 2021.
[1] github.com/dvlab-research/Parametric-Contrastive-Learning, LT/losses.py (PaCo) and GPaCo/LT/losses.py: alpha .05,
    beta 1, T .2, supt 1, a queue of 8192 on ImageNet-LT
[2] Cui, Zhong, Tian, Liu, Yu, Jia. Generalized Parametric Contrastive Learning. TPAMI 2023.

    p = softmax([(z + log pi) / supt,  q.k_1 / T, ..., q.k_K / T])
    L = -(beta log p_y + alpha sum_{j in P} log p_j) / (beta + alpha |P|),   P = {j: y_j = y}

q is the sample's unit embedding, k are those of other samples: one softmax over the classes and over samples. The more
samples of its class are among k, the less a sample pulls on the classifier, which favours rare classes.

PaCo's keys come from a momentum copy of the encoder and carry no gradient. GPaCo's keys come from the trained encoder
itself, so that the other samples of the batch are keys with a gradient; it may also smooth labels.

Differs from [1] in: one view of each image, no projection before q, and for PaCo no momentum encoder, which has no
counterpart on frozen features: the keys are past embeddings of the head itself. PaCo's keys are the queue alone, where
[1] adds the batch's other samples and the second views. The queue starts empty instead of random. Smoothing spreads its
share over all classes, including the true one. A class without images is left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm.balancing.losses.base import Loss, Reduction, log_prior, smoothed_cross_entropy
from imbalance_vlm.components.ranges import Count, NonNegative, Positive, Share
from imbalance_vlm.errors import InputError
from imbalance_vlm.long_tail import LongTail


def parametric_contrast(
    logits: Tensor,
    targets: Tensor,
    queries: Tensor,
    keys: Tensor,
    key_labels: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
    label_smoothing: float = 0.0,
    keys_hold_queries: bool = False,
) -> Tensor:
    """Per-sample loss, (N,), of shifted logits (N, C) and unit queries (N, d) against unit keys (K, d).

    The sum of the positives' similarities is computed as q.(sum of the keys of class y) / T, without an (N, K) mask.
    With l the normaliser of the softmax, log p_j = q.k_j / T - l.

    Args:
        logits: (z + log pi) / supt, in which -inf leaves a class out.
        targets: (N,) classes of the queries.
        queries: q.
        keys: k.
        key_labels: (K,) classes of the keys, -1 for an empty slot.
        alpha: weight of each key of the same class.
        beta: weight of the class itself.
        temperature: T.
        label_smoothing: share of beta spread evenly over the classes whose logit is not -inf.
        keys_hold_queries: whether the last N keys are the queries themselves; each then leaves itself out.
    """
    size, num_classes = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)  # for sums over keys
    mask = torch.where(key_labels < 0, -torch.inf, 0.0).to(logits.dtype)  # (K,)
    scaled = F.linear(queries / temperature, keys, mask)  # (N, K)
    if keys_hold_queries:
        scaled.diagonal(offset=len(keys) - size).fill_(-torch.inf)
    label = smoothed_cross_entropy(torch.cat([logits, scaled], dim=1), targets).to(wide)  # (N,) -log p_y
    hit = logits.gather(1, targets[:, None]).squeeze(1).to(wide)
    normaliser = hit + label  # (N,) l
    if label_smoothing > 0.0:
        finite = ~torch.isneginf(logits)
        mean = torch.where(finite, logits, 0.0).sum(1) / finite.sum(1)  # (N,)
        label = label + label_smoothing * (hit - mean)

    classes = key_labels % (num_classes + 1)  # (K,) -1 becomes C, a class that is never looked up
    sums = keys.new_zeros(num_classes + 1, keys.shape[1], dtype=wide).index_add(0, classes, keys.to(wide))
    counts = keys.new_zeros(num_classes + 1, dtype=wide).index_add(0, classes, torch.ones_like(classes, dtype=wide))
    unit = queries.to(wide)
    near, positives = (unit * sums[targets]).sum(1), counts[targets]  # (N,) sum of q.k_j over P, and |P|
    if keys_hold_queries:
        near, positives = near - unit.square().sum(1), positives - 1.0
    contrast = positives * normaliser - near / temperature  # -sum of log p_j
    return ((beta * label + alpha * contrast) / (beta + alpha * positives)).to(logits.dtype)


class PaCo(Loss):
    """One softmax over the classes and over the embeddings of past samples.

    Without embeddings it is the parametric part alone, cross-entropy of (z + log pi) / supt. Embeddings enter the queue
    in training mode only.

    Cost: around twenty times cross-entropy's time on a CPU at 8142 classes, a queue of 8192 and embeddings of 512
    numbers, and three times its memory. Nearly all of it is two matrix products, of N x d x 8192 multiplications each,
    between the batch and the queue: as much as a second linear classifier of 8192 classes. The softmax has twice the
    columns, and the queue itself takes 16 MB, twice that during a step.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        alpha: weight of each key of the sample's class, relative to `beta` for the class itself.
        beta: weight of the class itself.
        temperature: temperature T of the similarities.
        supt: temperature of the logits.
        queue: number of past samples that are keys.
    """

    keys: Tensor
    key_labels: Tensor
    pointer: Tensor

    def __init__(
        self,
        long_tail: LongTail,
        *,
        alpha: NonNegative = 0.05,
        beta: Positive = 1.0,
        temperature: Positive = 0.2,
        supt: Positive = 1.0,
        queue: Count = 8192,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(long_tail, reduction=reduction)
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.supt = supt
        self.register_buffer("keys", torch.zeros(0, 0))  # (Q, d) after the first batch
        self.register_buffer("key_labels", torch.full((queue,), -1))  # (Q,) int64, -1 for an empty slot
        self.register_buffer("pointer", torch.tensor(0))  # () slot of the next sample, never fetched from the device

    def values(self, logits: Tensor, targets: Tensor, embeddings: Tensor | None) -> Tensor:
        shifted = logits + log_prior(self.counts, logits)
        if self.supt != 1.0:
            shifted = shifted / self.supt
        if embeddings is None:
            return self.parametric(shifted, targets)
        queries = self._queries(logits, embeddings)
        values = self.contrast(shifted, targets, queries)
        if self.training:
            self.enqueue(queries.detach(), targets)
        return values

    def parametric(self, shifted: Tensor, targets: Tensor) -> Tensor:
        """(N,) values of the classes alone."""
        return smoothed_cross_entropy(shifted, targets)

    def contrast(self, shifted: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
        """(N,) values of shifted logits (N, C) and unit queries (N, d), with the current queue."""
        if not len(self.keys):
            return self.parametric(shifted, targets)
        keys = self.keys.to(queries.dtype)
        settings = (self.alpha, self.beta, self.temperature)
        return parametric_contrast(shifted, targets, queries, keys, self.key_labels, *settings)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, targets: Tensor) -> None:
        """Replace the oldest keys by unit keys (N, d); if these are more than the queue holds, by the last of them."""
        size = len(self.key_labels)
        if not len(self.keys):
            self.keys = keys.new_zeros(size, keys.shape[1])
        keys, targets = keys[-size:], targets[-size:]
        slots = (self.pointer + torch.arange(len(targets), device=targets.device)) % size
        self.keys = self.keys.index_copy(0, slots, keys.to(self.keys.dtype))  # the backward pass needs the old keys
        self.key_labels.index_copy_(0, slots, targets)
        self.pointer.add_(len(targets)).remainder_(size)

    def _queries(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        """(N, d) unit embeddings in the dtype of the logits."""
        width = self.keys.shape[1] if len(self.keys) else embeddings.shape[-1]
        if embeddings.shape != (len(logits), width):
            shape = f"({len(logits)}, {width if len(self.keys) else 'd'})"
            raise InputError(f"`embeddings` must be {shape}, one row per sample, got {tuple(embeddings.shape)}")
        return F.normalize(embeddings, dim=1).to(logits.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take the queue's width from the saved state: a new module does not know it."""
        saved = state_dict.get(prefix + "keys")
        if saved is not None and len(saved) in (0, len(self.key_labels)):
            self.keys = self.keys.new_zeros(saved.shape, dtype=saved.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args)


class GPaCo(PaCo):
    """PaCo without a second encoder: the other samples of the batch are keys too, with their gradient.

    Without embeddings it is the parametric part alone, like PaCo.

    Cost: twenty to thirty times cross-entropy's time on a CPU at the same sizes, and three and a half times its memory,
    for the same reason as PaCo; the gradient of the batch's keys is a third product.

    Args:
        long_tail: class counts; a class without images is left out of the softmax.
        alpha: weight of each key of the sample's class, relative to `beta` for the class itself.
        beta: weight of the class itself.
        temperature: temperature T of the similarities.
        supt: temperature of the logits.
        queue: number of past samples that are keys in addition to the batch.
        label_smoothing: share of the class's weight spread evenly over the classes, in [0, 1).
    """

    def __init__(
        self,
        long_tail: LongTail,
        *,
        alpha: NonNegative = 0.05,
        beta: Positive = 1.0,
        temperature: Positive = 0.2,
        supt: Positive = 1.0,
        queue: Count = 8192,
        label_smoothing: Share = 0.0,
        reduction: Reduction = "batch",
    ) -> None:
        super().__init__(
            long_tail, alpha=alpha, beta=beta, temperature=temperature, supt=supt, queue=queue, reduction=reduction
        )
        self.label_smoothing = label_smoothing

    def parametric(self, shifted: Tensor, targets: Tensor) -> Tensor:
        return smoothed_cross_entropy(shifted, targets, self.label_smoothing)

    def contrast(self, shifted: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
        keys, labels = queries, targets
        if len(self.keys):
            keys = torch.cat([self.keys.to(queries.dtype), queries])
            labels = torch.cat([self.key_labels, targets])
        settings = (self.alpha, self.beta, self.temperature, self.label_smoothing)
        return parametric_contrast(shifted, targets, queries, keys, labels, *settings, keys_hold_queries=True)
