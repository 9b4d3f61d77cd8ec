"""What every encoder must do. `test_base.py` runs these over the registry, and on encoders that are wrong.

A contract takes `make(weights, **settings) -> specification` and the capabilities of its entry, and raises
AssertionError when the encoder breaks it. `make` writes the weights of that number to where the specification looks for
them, so that the same specification can be seen with other weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn

from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.base import KINDS, Encoder, EncoderSpec
from imbalance_vlm.errors import InputError

Make = Callable[..., EncoderSpec]
Capabilities = frozenset[str]
NAMES = ("red apple", "blue_car", "cat")
TEMPLATES = ("a photo of a {}.", "the {}")


def batch(encoder: Encoder) -> Tensor:
    """(3, 3, H, W) preprocessed images of three colours."""
    colours = ((220, 30, 30), (40, 190, 60), (30, 60, 220))
    return torch.stack([encoder.preprocessing(Image.new("RGB", (30, 22), colour)) for colour in colours])


@torch.no_grad()
def features_of(encoder: Encoder) -> Iterator[tuple[str, Tensor]]:
    """The features of each kind that the encoder has."""
    for kind in KINDS:
        try:
            yield kind, encoder.image_features(batch(encoder), kind)
        except InputError:  # a tower without a class token, for example
            assert kind != "embedding", "every encoder must have 'embedding'"


@contextmanager
def no_modules() -> Iterator[None]:
    """Nothing can be loaded in here."""
    error = AssertionError("a module was made")
    with mock.patch.object(nn.Module, "__init__", side_effect=error):
        yield


def identity_follows_the_weights(make: Make, provides: Capabilities) -> None:
    spec = make(0)
    first = spec.identity()
    assert first, "the identity is empty"
    assert isinstance(first, str), f"the identity is a {type(first).__name__}"
    make(1)
    assert spec.identity() != first, "other weights have the same identity"
    make(0)
    assert spec.identity() == first, "the same weights have another identity"


def identity_loads_nothing(make: Make, provides: Capabilities) -> None:
    spec = make(0)
    with no_modules():
        spec.identity()


def fingerprint_follows_the_weights(make: Make, provides: Capabilities) -> None:
    spec = make(0)
    first = spec.build().fingerprint
    assert spec.build().fingerprint == first, "the same weights have another fingerprint"
    make(1)
    assert spec.build().fingerprint != first, "other weights have the same fingerprint"


def has_the_attributes_of_an_encoder(make: Make, provides: Capabilities) -> None:
    encoder = make(0).build()
    types: dict[str, Any] = {
        "name": str,
        "pretrained": str,
        "pretrain_pairs": int | None,
        "samples_seen": int | None,
        "precision": str,
        "fingerprint": str,
        "preprocessing": Preprocessing,
        "final_norm": bool,
        "logit_scale": float,
        "module": nn.Module,
    }
    for name, wanted in types.items():
        assert hasattr(encoder, name), f"no attribute {name}"
        value = getattr(encoder, name)
        assert isinstance(value, wanted), f"{name} is {value!r}"
    assert encoder.logit_scale > 0
    assert not encoder.module.training, "the module is in training mode"


def widths_are_those_of_the_features(make: Make, provides: Capabilities) -> None:
    encoder = make(0).build()
    kinds = []
    for kind, features in features_of(encoder):
        assert features.ndim == (3 if kind == "tokens" else 2), f"{kind} of shape {tuple(features.shape)}"
        assert features.shape[0] == 3, f"{len(features)} rows of {kind} for 3 images"
        assert features.shape[-1] == encoder.width(kind), f"{kind}: width {encoder.width(kind)} of {features.shape}"
        assert bool(features.isfinite().all()), f"{kind} are not finite"
        kinds.append(kind)
    assert ("tokens" in kinds) == ("tokens" in provides), f"has {kinds}, and its entry provides {set(provides)}"


def features_are_float32_in_any_precision(make: Make, provides: Capabilities) -> None:
    for precision in ("fp32", "bf16"):
        encoder = make(0, precision=precision).build()
        assert encoder.precision == precision
        types = {kind: features.dtype for kind, features in features_of(encoder)}
        assert set(types.values()) == {torch.float32}, f"in {precision}: {types}"


def images_do_not_depend_on_the_batch(make: Make, provides: Capabilities) -> None:
    encoder = make(0).build()
    for kind, features in features_of(encoder):
        with torch.no_grad():
            alone = torch.cat([encoder.image_features(image[None], kind) for image in batch(encoder)])
        torch.testing.assert_close(features, alone, rtol=1e-4, atol=1e-5, msg=f"{kind} depend on the batch")


def text_features_are_unit_rows_beside_the_images(make: Make, provides: Capabilities) -> None:
    encoder = make(0).build()
    if "text" not in provides:
        for ask in (lambda: encoder.text_features(NAMES, TEMPLATES), lambda: encoder.text_in("embedding", Tensor())):
            try:
                ask()
            except InputError:
                continue
            raise AssertionError("gives text features, and its entry provides none")
        return
    text = encoder.text_features(NAMES, TEMPLATES)
    assert text.shape == (len(NAMES), encoder.width("embedding")), f"shape {tuple(text.shape)}"
    torch.testing.assert_close(text.norm(dim=1), torch.ones(len(NAMES)), msg="rows are not of length 1")
    backwards = encoder.text_features(NAMES[::-1], TEMPLATES)
    torch.testing.assert_close(backwards, text.flip(0), msg="a name's features depend on the other names")
    assert torch.equal(encoder.text_in("embedding", text), text)
    directions = encoder.text_in("class_token", text)
    assert directions.shape == (len(NAMES), encoder.width("class_token")), f"shape {tuple(directions.shape)}"


def building_draws_no_random_numbers(make: Make, provides: Capabilities) -> None:
    state = torch.get_rng_state()
    spec = make(0)
    spec.identity()
    encoder = spec.build()
    for kind, _ in features_of(encoder):
        encoder.width(kind)
    assert torch.equal(torch.get_rng_state(), state), "drew from torch's generator"


CONTRACTS = (
    identity_follows_the_weights,
    identity_loads_nothing,
    fingerprint_follows_the_weights,
    has_the_attributes_of_an_encoder,
    widths_are_those_of_the_features,
    features_are_float32_in_any_precision,
    images_do_not_depend_on_the_batch,
    text_features_are_unit_rows_beside_the_images,
    building_draws_no_random_numbers,
)
