"""Contracts of encoders, over everything registered, and seen to fail on encoders that are wrong."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm.components import catalogue
from imbalance_vlm.data.preprocessing import Preprocessing
from imbalance_vlm.encoders.base import EncoderSpec, autocast
from imbalance_vlm.encoders.factory import encoder_spec
from imbalance_vlm.encoders.locations import CONFIG
from imbalance_vlm.errors import InputError
from tests.conftest import TINY_CLIP
from tests.encoders import encoder_contracts
from tests.encoders.encoder_contracts import CONTRACTS, Make


def seeded(make: Any, seed: int) -> nn.Module:
    """A module with random weights, without drawing from torch's generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: nn.Module = make()
    return module


def write(module: nn.Module, file: Path, weights: int) -> None:
    save_file(module.state_dict(), file)
    os.utime(file, (weights, weights))  # files that are written at once may have the same time


def open_clip_section(folder: Path, weights: int) -> dict[str, Any]:
    (folder / CONFIG).write_text(json.dumps(TINY_CLIP))
    model = seeded(lambda: open_clip.CLIP(**TINY_CLIP["model_cfg"]), weights)  # type: ignore[arg-type]
    write(model, folder / "open_clip_model.safetensors", weights)
    return {"name": f"local-dir:{folder}"}


def timm_section(folder: Path, weights: int) -> dict[str, Any]:
    file = folder / "model.safetensors"
    write(seeded(lambda: timm.create_model("test_vit", num_classes=0), weights), file, weights)
    return {"name": "timm:test_vit", "pretrained": str(file)}


SECTIONS = {"open_clip": open_clip_section, "timm": timm_section}
"""By the name of the entry: writes weights of a number to a folder, and returns the section that names them."""


@pytest.mark.parametrize("name", catalogue.ENCODERS.names())
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_encoder_keeps_the_contract(contract: Any, name: str, tmp_path: Path) -> None:
    assert name in SECTIONS, f"add a line for '{name}' to SECTIONS in {__name__}"

    def make(weights: int, **settings: Any) -> EncoderSpec:
        return encoder_spec(SECTIONS[name](tmp_path, weights) | settings)

    contract(make, catalogue.ENCODERS.provided(SECTIONS[name](tmp_path, 0)))


# -- encoders that are wrong on purpose ------------------------------------------------------------------------------


class Sound:
    """Nothing wrong: four patches of 4 x 4 pixels as tokens of width 6, their mean as the class token, and text
    features in a space of width 5."""

    pretrained, pretrain_pairs, samples_seen, final_norm, logit_scale = "file", None, 10, True, 2.0
    preprocessing = Preprocessing((8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    widths: ClassVar[dict[str, int]] = {"embedding": 5, "class_token": 6, "tokens": 6}

    def __init__(self, name: str, seed: int, precision: str) -> None:
        self.name = name
        self.precision = precision
        self.fingerprint = str(seed)
        self.module = seeded(lambda: nn.Sequential(nn.Linear(48, 6), nn.Linear(6, 5)), seed).eval()

    def width(self, kind: str) -> int:
        return self.widths[kind]

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        patches, projection = self.module.children()
        with autocast(pixels.device, self.precision):
            tokens = patches(pixels.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(pixels), 4, 48))
            tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1)
            features = {"tokens": tokens, "class_token": tokens[:, 0], "embedding": projection(tokens[:, 0])}
        return features[kind].float()

    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        seeds = [zlib.crc32(name.encode()) for name in class_names]
        rows = [torch.randn(5, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return F.normalize(torch.stack(rows), dim=-1)

    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        return text_features if kind == "embedding" else F.pad(text_features, (0, 1))


@dataclass
class SoundSpec:
    """A specification whose weights are a number in a file."""

    file: Path
    precision: str = "fp32"
    encoder: type[Sound] = Sound

    def identity(self) -> str:
        return self.file.read_text()

    def build(self) -> Any:
        return self.encoder("sound", int(self.file.read_text()), self.precision)


class IdentityOfTheName(SoundSpec):
    def identity(self) -> str:
        return "sound"


class IdentityByLoading(SoundSpec):
    def identity(self) -> str:
        return self.build().fingerprint


class BuildsFromGlobalRandom(SoundSpec):
    def build(self) -> Any:
        torch.rand(1)
        return super().build()


class FingerprintOfTheName(Sound):
    def __init__(self, name: str, seed: int, precision: str) -> None:
        super().__init__(name, seed, precision)
        self.fingerprint = name


class Training(Sound):
    def __init__(self, name: str, seed: int, precision: str) -> None:
        super().__init__(name, seed, precision)
        self.module.train()


class WholeNumberScale(Sound):
    logit_scale = 2


class WidthOfTheTokens(Sound):
    def width(self, kind: str) -> int:
        return 6


class NoTokens(Sound):
    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        if kind == "tokens":
            raise InputError("no tokens")
        return super().image_features(pixels, kind)


class HalfPrecision(Sound):
    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        features = super().image_features(pixels, kind)
        return features.bfloat16() if self.precision == "bf16" else features


class LessTheMeanOfTheBatch(Sound):
    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        features = super().image_features(pixels, kind)
        return features - features.mean(0)


class LongText(Sound):
    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return 2 * super().text_features(class_names, templates)


class TextByPosition(Sound):
    def text_features(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        return super().text_features([str(place) for place in range(len(class_names))], templates)


class TextInOneSpace(Sound):
    def text_in(self, kind: str, text_features: Tensor) -> Tensor:
        return text_features


def make_from(folder: Path, spec: type[SoundSpec], encoder: type[Sound] = Sound) -> Make:
    def make(weights: int, **settings: Any) -> EncoderSpec:
        (folder / "weights").write_text(str(weights))
        return spec(folder / "weights", encoder=encoder, **settings)

    return make


BAD: dict[type[SoundSpec] | type[Sound], Callable[..., None]] = {
    IdentityOfTheName: encoder_contracts.identity_follows_the_weights,
    IdentityByLoading: encoder_contracts.identity_loads_nothing,
    FingerprintOfTheName: encoder_contracts.fingerprint_follows_the_weights,
    Training: encoder_contracts.has_the_attributes_of_an_encoder,
    WholeNumberScale: encoder_contracts.has_the_attributes_of_an_encoder,
    WidthOfTheTokens: encoder_contracts.widths_are_those_of_the_features,
    NoTokens: encoder_contracts.widths_are_those_of_the_features,
    HalfPrecision: encoder_contracts.features_are_float32_in_any_precision,
    LessTheMeanOfTheBatch: encoder_contracts.images_do_not_depend_on_the_batch,
    LongText: encoder_contracts.text_features_are_unit_rows_beside_the_images,
    TextByPosition: encoder_contracts.text_features_are_unit_rows_beside_the_images,
    TextInOneSpace: encoder_contracts.text_features_are_unit_rows_beside_the_images,
    BuildsFromGlobalRandom: encoder_contracts.building_draws_no_random_numbers,
}


@pytest.mark.parametrize(("wrong", "contract"), BAD.items())
def test_each_contract_fails_on_an_encoder_that_breaks_it(wrong: Any, contract: Any, tmp_path: Path) -> None:
    provides = frozenset({"text", "tokens"})
    contract(make_from(tmp_path, SoundSpec), provides)
    bad = make_from(tmp_path, wrong) if issubclass(wrong, SoundSpec) else make_from(tmp_path, SoundSpec, wrong)
    with pytest.raises(AssertionError):
        contract(bad, provides)


def test_an_entry_must_not_hide_that_its_encoder_reads_text(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="its entry provides none"):
        encoder_contracts.text_features_are_unit_rows_beside_the_images(make_from(tmp_path, SoundSpec), frozenset())


def test_every_contract_is_seen_to_fail() -> None:
    assert set(BAD.values()) == set(CONTRACTS)
