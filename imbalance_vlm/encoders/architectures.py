"""open_clip's architectures: built without weights, compared with the tensors of a file, and filled from it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imbalance_vlm.encoders.formats import Weights, differences
from imbalance_vlm.errors import InputError

NAMED = 3
"""Most tensors that are named in an error about weights of another architecture."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence open_clip, which logs to the root logger: also the errors that it raises, and that no weights were loaded
    when none were requested."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(level)


def skeleton(name: str) -> nn.Module:
    """One of open_clip's architectures on the meta device: names and shapes, no memory, no downloads."""
    import open_clip

    with quiet(), torch.device("meta"):
        return open_clip.create_model(name, load_weights=False, pretrained_text=False, device="meta").eval()


def configuration(name: str) -> dict[str, Any]:
    """The configuration of one of open_clip's architectures, {} for any other name."""
    import open_clip

    config = None if ":" in name else open_clip.get_model_config(name.replace("/", "-"))
    return config or {}


def text_config(name: str) -> dict[str, Any]:
    """The part of the configuration that describes the text tower."""
    text: dict[str, Any] = configuration(name).get("text_cfg", {})
    return text


def has_transformers() -> bool:
    """Whether transformers is installed, which text towers and tokenizers from Hugging Face need."""
    return importlib.util.find_spec("transformers") is not None


def fill(net: nn.Module, weights: Weights, model: str, pretrained: str) -> None:
    """Load weights into a model: all tensors of both must match, and features must be finite.

    Args:
        net: an open_clip model.
        weights: from a file.
        model, pretrained: as in the recipe.

    Raises:
        InputError: weights of another architecture, with the architectures they fit, or weights that are not finite.
    """
    expected = net.state_dict()
    state = adapted(expected, weights.state)
    wrong = differences(expected, state)
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(
            f"`pretrained` {pretrained!r} holds weights of another architecture than '{model}' ({weights.file.name}, "
            f"{weights.format} format): {'; '.join(wrong[:NAMED])}{more}. {_advice(weights)}"
        )
    net.load_state_dict(state)
    _check_forward(net, pretrained)


def adapted(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Resolve differences in notation between a model's state dict and that of a file.

    The text tower's parts may be on the model or on its `text`, a number may be a vector of one, and older libraries
    saved position numbers.
    """
    from open_clip import model as library

    new = dict(state)
    if "text.positional_embedding" in expected and "positional_embedding" in new:
        new = library.convert_to_custom_text_state_dict(new)
    if "positional_embedding" in expected and "text.positional_embedding" in new:
        new = {name.removeprefix("text."): value for name, value in new.items()}
    for name in ("logit_scale", "logit_bias"):
        if name in expected and name in new and expected[name].numel() == new[name].numel():
            new[name] = new[name].reshape(expected[name].shape)
    position_numbers = "text.transformer.embeddings.position_ids"
    if position_numbers not in expected:
        new.pop(position_numbers, None)
    return new


def fitting(weights: Weights) -> list[str]:
    """The architectures of open_clip whose tensors are exactly those of a file."""
    names = []
    for name in _candidates(weights.state):
        try:
            expected = skeleton(name).state_dict()
        except Exception:  # noqa: S112  # an architecture that needs another library is of no help
            continue
        if not differences(expected, adapted(expected, weights.state)):
            names.append(name)
    return names


def _candidates(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Architectures whose text tower has the vocabulary, width and length of a file: the few worth building."""
    import open_clip

    plain = {name.removeprefix("text."): tuple(value.shape) for name, value in state.items()}
    shapes = plain.get("token_embedding.weight"), plain.get("positional_embedding")
    for name in open_clip.list_models():
        text = text_config(name)
        width = text.get("width", 512)
        length = text.get("context_length", 77) + bool(text.get("embed_cls"))
        if "hf_model_name" not in text and shapes == ((text.get("vocab_size", 49408), width), (length, width)):
            yield name


def _advice(weights: Weights) -> str:
    quick = weights.quick_gelu
    names = [name for name in fitting(weights) if quick is None or quick or not name.endswith("-quickgelu")]
    if quick:  # the plain name gets QuickGELU too; the other name is explicit
        names = [name for name in names if f"{name}-quickgelu" not in names]
    if not names:
        return (
            "None of open_clip's architectures has these shapes; set encoder.name to the one that the file was trained "
            "with"
        )
    return f"Set encoder.name to {' or '.join(repr(name) for name in names)}, whose shapes these are"


@torch.no_grad()
def _check_forward(net: Any, pretrained: str) -> None:
    size = net.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    text = getattr(net, "text", net)
    ids = torch.zeros(1, text.context_length, dtype=torch.long) if hasattr(text, "context_length") else None
    was_training = net.training
    net.eval()
    features = {"images": net.encode_image(torch.zeros(1, 3, height, width))}
    if ids is not None:
        features["texts"] = net.encode_text(ids)
    net.train(was_training)
    for kind, values in features.items():
        if not bool(values.isfinite().all()):
            raise InputError(
                f"`pretrained` {pretrained!r} holds weights that give features of {kind} that are not finite; the file "
                "is damaged, or its training diverged"
            )
