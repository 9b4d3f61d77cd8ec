"""A head on an image tower that is trained with it.

The features of a frozen tower are computed once. Those of a trained tower change with every step, so this head reads
the images and runs the tower.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.peft.base import TunedTower


class TowerHead(Head):
    """Images (B, 3, H, W) to logits (B, C), through a trained tower and a head on its features.

    Its parameters are those of the inner head and those trained in the tower, and its state holds these and the buffers
    that belong to them, never the frozen part. The tower stays in the encoder, which the runs of a study share: the
    code that applied the method must call `TunedTower.remove` at the end.

    A deep copy is an independent model that shares all frozen parts with the original.

    Args:
        encoder: the encoder whose image tower is trained; its precision is used.
        tuned: that tower.
        inner: the head that reads its features; its parameters that require gradients are trained.
        kind: the features that `inner` reads; see `imbalance_vlm.encoders.base.KINDS`.
    """

    encoder: Encoder
    tuned: TunedTower

    def __init__(self, encoder: Encoder, tuned: TunedTower, inner: Head, kind: str) -> None:
        super().__init__()
        # nn.Module.__setattr__ would make the whole encoder a submodule of this one.
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "tuned", tuned)
        self.inner = inner
        self.tower = module_of(tuned.values())
        self.kind = kind

    def embed(self, features: Tensor) -> Tensor:
        return self.inner.embed(self.encoder.image_features(features, self.kind))

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.inner.classifier()

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.inner.classify(embeddings)

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        self.inner.observe(embeddings, targets)

    def for_names(
        self, class_names: Sequence[str], text_features: Callable[[Sequence[str]], Tensor] | None = None
    ) -> TowerHead:
        other = copy.copy(self)
        other._modules = dict(self._modules)  # so that replacing the inner head leaves the original unchanged
        other.inner = self.inner.for_names(class_names, text_features)
        return other

    @property
    def trained_tower(self) -> nn.Module:  # type: ignore[override]
        return self.tuned.root

    @property
    def logit_scale(self) -> float | None:  # type: ignore[override]
        return self.inner.logit_scale

    @property
    def learns_text(self) -> bool:  # type: ignore[override]
        return self.inner.learns_text

    @property
    def text(self) -> Tensor | None:  # type: ignore[override]
        return self.inner.text

    def train(self, mode: bool = True) -> TowerHead:
        """Training mode for the inner head and the trained parts of the tower, evaluation mode for the frozen parts."""
        super().train(mode)
        self.tuned.train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TowerHead:
        trained = {id(value) for value in [*self.parameters(), *self.buffers()]}
        module = self.encoder.module
        shared = [value for value in [*module.parameters(), *module.buffers()] if id(value) not in trained]
        shared += self.tuned.base_values.values()
        if hasattr(self.encoder, "tokenizer"):
            shared.append(self.encoder.tokenizer)
        memo |= {id(value): value for value in shared}
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        clone.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return clone


def module_of(values: Mapping[str, Tensor]) -> nn.Module:
    """A tree of empty modules that holds these parameters and buffers, the same tensors, under their dotted names.

    >>> list(module_of({"blocks.0.bias": nn.Parameter(Tensor([1.0]))}).state_dict())
    ['blocks.0.bias']
    """
    root = nn.Module()
    for path, value in values.items():
        *folders, name = path.split(".")
        module = root
        for folder in folders:
            if folder not in module._modules:
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        if isinstance(value, nn.Parameter):
            module.register_parameter(name, value)
        else:
            module.register_buffer(name, value)
    return root
