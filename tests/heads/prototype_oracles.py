"""Heads with prototypes away from their start, and their logits in plain loops from their equations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imbalance_vlm.balancing.prototypes import create_prototypes
from imbalance_vlm.heads.base import Head
from imbalance_vlm.heads.prototype import PrototypeHead
from imbalance_vlm.heads.prototype_guided import PrototypeGuidedHead

WIDTH, CLASSES, BATCH = 8, 5, 12

COUNTS = (60, 20, 8, 3, 1)

SETTINGS: list[tuple[type[Head], dict[str, Any]]] = [
    (PrototypeHead, {}),
    (PrototypeHead, {"map": "adapter", "adapter": 6}),
    (PrototypeHead, {"normalise": False}),
    (PrototypeHead, {"map": "adapter", "adapter": 6, "normalise": False}),
    (PrototypeGuidedHead, {}),
    (PrototypeGuidedHead, {"adapter": 6}),
    (PrototypeGuidedHead, {"init": "prototype", "adapter": 6}),
    (PrototypeGuidedHead, {"guide": "fixed"}),
    (PrototypeGuidedHead, {"bias": False}),
]

Array = NDArray[np.float64]


def features(rows: int = BATCH, seed: int = 1) -> Tensor:
    return 3 * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def targets(rows: int = BATCH) -> Tensor:
    return torch.arange(rows) % CLASSES


def stirred(build: type[Head], settings: dict[str, Any]) -> Head:
    """A head away from where it starts: identities and zeros hide mistakes."""
    torch.manual_seed(0)
    head = build(WIDTH, CLASSES, create_prototypes(CLASSES, WIDTH), **settings)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return head


def unit(row: Array) -> Array:
    return row / np.sqrt((row * row).sum())


def mapped(head: Any, row: Array, map: nn.Module | None) -> Array:
    """A linear map or a residual bottleneck of one row, entry by entry."""
    if map is None:
        return row
    values = {key: value.detach().double().numpy() for key, value in map.state_dict().items()}
    if "weight" in values:
        return np.array([float(w @ row) + b for w, b in zip(values["weight"], values["bias"], strict=True)])
    hidden = [max(0.0, float(w @ row) + b) for w, b in zip(values["down.weight"], values["down.bias"], strict=True)]
    change = [
        sum(a * h for a, h in zip(w, hidden, strict=True)) + b
        for w, b in zip(values["up.weight"], values["up.bias"], strict=True)
    ]
    return row + np.array(change)


def prototype_logits(head: PrototypeHead, rows: Tensor) -> Array:
    """z_c = s cos(e, p_c), or e . p_c."""
    logits = np.zeros((len(rows), CLASSES))
    for i, row in enumerate(rows.double().numpy()):
        e = mapped(head, unit(row) * np.sqrt(WIDTH), head.map)
        for c, p in enumerate(head.prototypes.double().numpy()):
            dot = float(sum(a * b for a, b in zip(e, p, strict=True)))
            logits[i, c] = 25.0 * dot / np.sqrt(float((e * e).sum())) if head.normalise else dot
    return logits


def guided_logits(head: PrototypeGuidedHead, rows: Tensor, alpha: float = 1.0, scale: float = 25.0) -> Array:
    """z_c = w_c . e + b_c + alpha s cos(e, m_c), e of norm sqrt(w)."""
    weight = head.layer.weight.detach().double().numpy()
    bias = np.zeros(CLASSES) if head.layer.bias is None else head.layer.bias.detach().double().numpy()
    logits = np.zeros((len(rows), CLASSES))
    for i, row in enumerate(rows.double().numpy()):
        e = unit(mapped(head, unit(row) * np.sqrt(WIDTH), head.adapter)) * np.sqrt(WIDTH)
        for c, m in enumerate(head.means.double().numpy()):
            logits[i, c] = weight[c] @ e + bias[c] + alpha * scale * float(unit(e) @ unit(m))
    return logits
