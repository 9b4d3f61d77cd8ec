"""A head behind an image tower that is trained with it.

A frozen tower's features are computed once; those of a tower under tuning change with every step, so this head reads
the images themselves and runs the tower.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from imbalance_vlm.encoders.base import Encoder
from imbalance_vlm.heads.base import Head
from imbalance_vlm.tuning.peft.base import Tuned


class TunedTower(Head):
    """Images (B, 3, H, W) to logits (B, C), through a tower under tuning and a head on its features.

    Its parameters are those of the inner head and those trained in the tower, and its state holds these (with the
    buffers that go with them), never the frozen part. The tower stays in the encoder, which the runs of a study share:
    whoever applied the method to it calls `Tuned.remove` in the end.

    A copy is a working model of its own, which shares all that is frozen with the original.

    Args:
        encoder: whose image tower is under tuning; its precision is used.
        tuned: that tower.
        inner: reads its features, and is trained as far as its parameters want it.
        kind: the features that `inner` reads; see `imbalance_vlm.encoders.base.KINDS`.
    """

    reads = "pixels"

    encoder: Encoder
    tuned: Tuned

    def __init__(self, encoder: Encoder, tuned: Tuned, inner: Head, kind: str) -> None:
        super().__init__()
        # Beside torch's own way of setting attributes, which would make the whole encoder a part of this module.
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "tuned", tuned)
        self.inner = inner
        self.tower = module_of(trained_values(tuned))
        self.kind = kind

    def embed(self, features: Tensor) -> Tensor:
        return self.inner.embed(self.encoder.image_features(features, self.kind))

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.inner.classifier()

    def classify(self, embeddings: Tensor) -> Tensor:
        return self.inner.classify(embeddings)

    def observe(self, embeddings: Tensor, targets: Tensor) -> None:
        self.inner.observe(embeddings, targets)

    @property
    def learns_embedding(self) -> bool:
        return True

    @property
    def learns_text(self) -> bool:  # type: ignore[override]  # of the inner head, which may be any
        return self.inner.learns_text

    @property
    def text(self) -> Tensor | None:  # type: ignore[override]
        return self.inner.text

    def train(self, mode: bool = True) -> TunedTower:
        """Training mode for the inner head and for what is trained in the tower, evaluation mode for its rest."""
        super().train(mode)
        self.tuned.train(mode)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> TunedTower:
        own = {id(value) for value in [*self.parameters(), *self.buffers()]}
        module = self.encoder.module
        frozen = [value for value in [*module.parameters(), *module.buffers()] if id(value) not in own]
        shared = [*frozen, *self.tuned.base_values.values()]
        shared += [getattr(self.encoder, name) for name in ("transform", "tokenizer") if hasattr(self.encoder, name)]
        memo |= {id(value): value for value in shared}
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update({key: copy.deepcopy(value, memo) for key, value in self.__dict__.items()})
        return made


def trained_values(tuned: Tuned) -> dict[str, Tensor]:
    """What `Tuned.state` gives, by name, but the tower's own tensors in place of copies."""
    there: dict[str, Tensor] = dict(tuned.root.named_parameters()) | dict(tuned.root.named_buffers())
    return {name: there[name] for name in tuned.state()}


def module_of(values: Mapping[str, Tensor]) -> nn.Module:
    """A tree of empty modules that holds these parameters and buffers, the same tensors, under their dotted names.

    >>> list(module_of({"blocks.0.bias": nn.Parameter(Tensor([1.0]))}).state_dict())
    ['blocks.0.bias']
    """
    top = nn.Module()
    for name, value in values.items():
        *path, own = name.split(".")
        place = top
        for step in path:
            if step not in place._modules:
                place.add_module(step, nn.Module())
            place = place.get_submodule(step)
        if isinstance(value, nn.Parameter):
            place.register_parameter(own, value)
        else:
            place.register_buffer(own, value)
    return top
