"""The parts of image towers: a common view of open_clip's and timm's vision transformers, and of networks in stages.

open_clip: transformer.resblocks of ln_1, attn (one packed in_proj_weight), ls_1, ln_2, mlp, ls_2; then ln_post.
timm: blocks of norm1, attn (qkv and proj), ls1, norm2, mlp, ls2; then norm, or fc_norm after pooling.
timm's EVA (EVA-CLIP, Perception Encoder): blocks of norm1, attn, drop_path1, norm2, mlp, drop_path2, where layer scales
are bare parameters, gamma_1 and gamma_2; the largest have their norms after attention and MLP. Query, key and value
are one matrix or three, with one bias, with separate biases, or without one for the keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from imbalance_vlm.errors import InputError

LAYOUTS: dict[str, dict[str, str]] = {
    "transformer.resblocks": {
        "norm1": "ln_1",
        "attention": "attn",
        "norm2": "ln_2",
        "mlp": "mlp",
        "entry": "ln_2",
        "branch": "ls_2",
    },
    "blocks": {
        "norm1": "norm1",
        "attention": "attn",
        "norm2": "norm2",
        "mlp": "mlp",
        "entry": "norm2",
        "branch": "ls2",
    },
}
"""Paths of the blocks in the towers of each library, and the names of the parts of a block."""

BLOCKS: dict[str, dict[str, str]] = {
    "EvaBlock": LAYOUTS["blocks"] | {"branch": "drop_path2"},
    "EvaBlockPostNorm": LAYOUTS["blocks"] | {"entry": "mlp", "branch": "drop_path2"},
}
"""Names of the parts in blocks of these classes, which differ from the layout of their tower."""

POSITIONS = {
    "rope": "rotary positions",
    "rel_pos": "relative position biases",
    "shared_rel_pos": "relative position biases",
    "rel_pos_bias": "relative position biases",
    "relative_position_bias_table": "relative position biases",
}
"""Attributes of modules whose attention uses positions, which are defined for the tokens of the image only."""

STAGES = (*LAYOUTS, "stages", "layers", "features")
"""Paths of the modules that a network runs in sequence; ResNets have layer1, layer2, ... instead."""


@dataclass(frozen=True)
class Site:
    """One affine map y = W x + b, or one norm with a scale W and a shift b.

    Args:
        name: unique within a block.
        called: the module whose forward pass reads W and b. open_clip's attention reads those of its `out_proj`, which
            is never called.
        weights: paths from `called` to W, or to the parts that W is split into by rows.
        biases: paths to b, or to its parts; a missing part counts as zeros, and if all are missing there is no b.
    """

    name: str
    called: nn.Module
    weights: tuple[str, ...] = ("weight",)
    biases: tuple[str, ...] = ("bias",)

    @property
    def base(self) -> tuple[Tensor, Tensor | None]:
        """W and b of the tower itself; b may be None."""
        weights = self._weights()
        biases = [self._value(path) for path in self.biases]
        present = [part for part in biases if part is not None]
        if not present:
            return _stacked(weights), None
        if len(present) == len(biases):
            return _stacked(weights), _stacked(present)
        sizes = zip(biases, self.rows(len(biases)), strict=True)
        filled = [weights[0].new_zeros(size) if part is None else part for part, size in sizes]
        return _stacked(weights), _stacked(filled)

    def rows(self, parts: int) -> list[int]:
        """Number of rows of W in each of its parts: as the tower splits it, otherwise equal numbers."""
        sizes = [len(part) for part in self._weights()]
        return sizes if len(sizes) == parts else [sum(sizes) // parts] * parts

    def _weights(self) -> list[Tensor]:
        weights = [self._value(path) for path in self.weights]
        present = [part for part in weights if part is not None]
        if len(present) < len(weights):
            raise InputError(f"the image tower needs weights in every {type(self.called).__name__}, but one has none")
        return present

    def _value(self, path: str) -> Tensor | None:
        """The tower's own parameter or buffer at this path, even while an override is applied."""
        holder, _, name = path.rpartition(".")
        module = self.called.get_submodule(holder)
        parameter = module._parameters.get(name)
        return module._buffers.get(name) if parameter is None else parameter


@dataclass(frozen=True)
class Block:
    """One transformer block, x <- x + attention(norm1(x)); x <- x + branch(mlp(norm2(x))), and its `module`.

    `entry` is the module that reads x in the second step: norm2, or the MLP if norm2 comes after it. `branch` is the
    last module before x is added: the layer scale, the stochastic depth after it, or the identity in their place.
    """

    module: nn.Module
    norm1: nn.Module
    attention: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    entry: nn.Module
    branch: nn.Module

    def attention_in(self) -> Site:
        """Query, key and value, stacked in this order, (3 w, w); grouped keys and values have fewer rows.

        Raises:
            InputError: an attention that has neither one matrix nor three.
        """
        if isinstance(getattr(self.attention, "in_proj_weight", None), Tensor):
            return Site("attention_in", self.attention, ("in_proj_weight",), ("in_proj_bias",))
        if isinstance(getattr(self.attention, "qkv", None), nn.Linear):
            if isinstance(getattr(self.attention, "q_bias", None), Tensor):  # qkv is not called: its weight is read
                return Site("attention_in", self.attention, ("qkv.weight",), ("q_bias", "k_bias", "v_bias"))
            return Site("attention_in", self.attention.get_submodule("qkv"))
        separate = ("q_proj", "k_proj", "v_proj")
        if all(isinstance(getattr(self.attention, name, None), nn.Linear) for name in separate):
            weights, biases = (tuple(f"{name}.{end}" for name in separate) for end in ("weight", "bias"))
            return Site("attention_in", self.attention, weights, biases)
        raise _lacks(self.attention, "query, key and value (in_proj_weight, qkv, or q_proj, k_proj and v_proj)")

    def attention_out(self) -> Site:
        """The projection after attention, (w, w).

        Raises:
            InputError: an attention without one.
        """
        if isinstance(getattr(self.attention, "out_proj", None), nn.Linear):
            return Site("attention_out", self.attention, ("out_proj.weight",), ("out_proj.bias",))
        out = getattr(self.attention, "proj", None)
        if isinstance(out, nn.Linear):
            return Site("attention_out", out)
        raise _lacks(self.attention, "an output projection (out_proj or proj)")

    def matrices(self) -> list[Site]:
        """The matrices of attention and MLP, in the order of the pass."""
        inside = [
            Site(f"mlp_{name.replace('.', '_')}", module)
            for name, module in self.mlp.named_modules()
            if isinstance(module, nn.Linear)
        ]
        return [self.attention_in(), self.attention_out(), *inside]

    def norms(self) -> list[Site]:
        """The norms before attention and MLP, or after them, and those within.

        Raises:
            InputError: norms that have no shift.
        """
        for norm in (self.norm1, self.norm2):
            if not isinstance(norm, nn.LayerNorm):
                raise InputError(f"the image tower needs layer norms in its blocks, got {type(norm).__name__}")
        inside = [
            Site(f"{part}_{name.replace('.', '_')}", module)
            for part, parent in (("attention", self.attention), ("mlp", self.mlp))
            for name, module in parent.named_modules()
            if isinstance(module, nn.LayerNorm)
        ]
        return [Site("norm1", self.norm1), Site("norm2", self.norm2), *inside]


@dataclass(frozen=True)
class Tower:
    """The parts of a vision transformer.

    Args:
        root: the image tower.
        blocks: its blocks, in the order of the pass.
        prefix: number of tokens before inserted ones: 1 if there is a class token, otherwise 0.
    """

    root: nn.Module
    blocks: list[Block]
    prefix: int

    @property
    def width(self) -> int:
        return int(next(self.blocks[0].norm2.parameters()).shape[0])

    @property
    def patch_numbers(self) -> int:
        """Number of values in a patch, 3 p^2, which the first layer reads."""
        first = next(module for module in self.root.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
        return first.weight[0].numel()

    def outer_norms(self) -> list[Site]:
        """The norms before and after the blocks."""
        names = ("ln_pre", "norm_pre", "ln_post", "norm", "fc_norm")
        modules = ((name, getattr(self.root, name, None)) for name in names)
        return [Site(name, module) for name, module in modules if isinstance(module, nn.LayerNorm)]


def image_tower(module: nn.Module) -> nn.Module:
    """The image tower of a model: open_clip's `visual`, the `trunk` of a tower from timm, or the model itself.

    >>> image_tower(nn.Linear(2, 3))
    Linear(in_features=2, out_features=3, bias=True)
    """
    for name in ("visual", "trunk"):
        inner = getattr(module, name, None)
        module = inner if isinstance(inner, nn.Module) else module
    return module


def transformer_tower(root: nn.Module, method: str, *, adds_tokens: bool = False) -> Tower:
    """The parts of a vision transformer.

    Args:
        root: an image tower.
        method: name of the method, for the error.
        adds_tokens: whether the method inserts tokens among those of the image, which needs a tower that adds positions
            to its tokens before the blocks.

    Raises:
        InputError: another kind of network; the message names its class and what it lacks.
    """
    for path, layout in LAYOUTS.items():
        blocks = _children_at(root, path)
        if not blocks:
            continue
        names = BLOCKS.get(type(blocks[0]).__name__, layout)
        needed = dict.fromkeys(names.values())
        missing = [name for name in needed if not all(hasattr(block, name) for block in blocks)]
        if missing:
            raise _refused(method, root, f"has blocks ({type(blocks[0]).__name__}) without {', '.join(missing)}")
        if adds_tokens:
            _check_positions(root, method)
        parts = [Block(block, **{part: getattr(block, name) for part, name in names.items()}) for block in blocks]
        has_class_token = any(getattr(root, name, None) is not None for name in ("class_embedding", "cls_token"))
        return Tower(root, parts, int(has_class_token))
    raise _refused(method, root, "has no transformer blocks (transformer.resblocks or blocks)")


def stages(root: nn.Module) -> list[str]:
    """Names of the blocks of a transformer, or of the stages of another network, in the order of the pass.

    Raises:
        InputError: a network without blocks or stages in the known places.
    """
    for path in STAGES:
        children = _children_at(root, path)
        if children:
            return [f"{path}.{number}" for number in range(len(children))]
    numbered = sorted(name for name, _ in root.named_children() if name.startswith("layer") and name[5:].isdigit())
    if not numbered:
        raise InputError(
            f"`last` and `lr_decay` need a network of blocks or stages ({', '.join(STAGES)}, or layer1, layer2, ...), "
            f"and {type(root).__name__} has none of them; use tuning 'full' without lr_decay"
        )
    return numbered


def after_stages(root: nn.Module) -> list[str]:
    """Names of the children that come after the last block or stage: final norms and poolings."""
    children = [name for name, _ in root.named_children()]
    return children[children.index(stages(root)[-1].split(".")[0]) + 1 :]


def beyond_features(root: nn.Module) -> set[str]:
    """Names of the parameters after the features that a head reads: a projection or a classifier."""
    outside = {"proj"} if "proj" in root._parameters else set()
    classifier = getattr(root, "get_classifier", lambda: None)()
    if isinstance(classifier, nn.Module):
        parameters = {id(parameter) for parameter in classifier.parameters()}
        outside |= {name for name, parameter in root.named_parameters() if id(parameter) in parameters}
    return outside


def beyond_blocks(root: nn.Module, method: str) -> set[str]:
    """Names of the parameters outside the blocks of a vision transformer.

    Raises:
        InputError: another kind of network.
    """
    blocks = {
        id(parameter) for block in transformer_tower(root, method).blocks for parameter in block.module.parameters()
    }
    return {name for name, parameter in root.named_parameters() if id(parameter) not in blocks}


def read_contiguously(root: nn.Module) -> list[RemovableHandle]:
    """Hooks by which open_clip's attention reads contiguous memory in training on a CPU.

    torch's attention transposes (B, T, w) to (T, B, w). If its packed projection is frozen, F.linear then multiplies
    the transposed view sample by sample, which takes several times as long. Here the norm before it writes its output
    in that order. Values are the same; without gradients, and on other devices, nothing changes.
    """
    norms_before = (
        block.get_submodule("ln_1")
        for block in _children_at(root, "transformer.resblocks")
        if isinstance(getattr(block, "attn", None), nn.MultiheadAttention) and hasattr(block, "ln_1")
    )
    return [norm.register_forward_hook(_sequence_first) for norm in norms_before]


def _sequence_first(norm: nn.Module, args: Any, output: Tensor) -> Tensor:
    if output.device.type != "cpu" or not torch.is_grad_enabled():
        return output
    return output.transpose(0, 1).contiguous().transpose(0, 1)


def norms(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norms of a tower, by name."""
    return ((name, module) for name, module in root.named_modules() if isinstance(module, (nn.LayerNorm, nn.RMSNorm)))


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _check_positions(root: nn.Module, method: str) -> None:
    for module in root.modules():
        for name, what in POSITIONS.items():
            if isinstance(getattr(module, name, None), (nn.Module, Tensor)):
                raise InputError(
                    f"tuning method '{method}' inserts tokens among those of the image, and {type(root).__name__} has "
                    f"{what} ({name}) in its attention, which exist for the image's own tokens only; use a method "
                    "that inserts none, such as 'lora' or 'coop'"
                )


def _children_at(root: nn.Module, path: str) -> list[nn.Module]:
    try:
        parent = root.get_submodule(path)
    except AttributeError:
        return []
    return list(parent.children()) if isinstance(parent, (nn.Sequential, nn.ModuleList)) else []


def _lacks(module: nn.Module, what: str) -> InputError:
    return InputError(f"the image tower needs an attention with {what}, and {type(module).__name__} has none")


def _refused(method: str, root: nn.Module, why: str) -> InputError:
    return InputError(
        f"tuning method '{method}' needs a vision transformer as open_clip or timm build it, and {type(root).__name__} "
        f"{why}; methods 'full' and 'partial' tune any network"
    )
