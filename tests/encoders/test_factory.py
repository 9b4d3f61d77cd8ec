"""Encoders by name: their specifications, identities and settings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from imbalance_vlm import InputError
from imbalance_vlm.components.catalogue import ENCODERS, REGISTRIES
from imbalance_vlm.encoders.base import file_fingerprint
from imbalance_vlm.encoders.factory import create_encoder, encoder_identity, encoder_spec
from imbalance_vlm.encoders.open_clip import OpenClipSpec
from imbalance_vlm.encoders.timm import TimmSpec


@dataclass(frozen=True)
class PluginSpec:
    """The specification of a plug-in: its weights are a file."""

    name: str

    def identity(self) -> str:
        return Path(self.name.removeprefix("plugin:")).read_text()

    def build(self) -> Any:
        return self


@pytest.fixture
def _plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))
    ENCODERS.add("plugin", PluginSpec, "of another package")
    yield
    assert REGISTRIES["encoders"] is ENCODERS


def test_a_section_becomes_a_specification() -> None:
    section = {"name": "mini-clip", "pretrained": "icons-tiny", "cache": False, "decoder": "gpu"}
    assert encoder_spec(section) == OpenClipSpec("mini-clip", pretrained="icons-tiny")
    assert encoder_spec({"name": "timm:test_vit", "pretrained": "random"}) == TimmSpec(
        "timm:test_vit", pretrained="random"
    )


def test_a_specification_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TimmSpec("timm:test_vit").name = "timm:test_vit2"  # type: ignore[misc]


def test_an_identity_follows_the_weights_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    spec = TimmSpec("timm:test_vit", pretrained=str(file))
    identities = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), file)
        os.utime(file, (seed, seed))
        identities.append(spec.identity())
        assert spec.build().fingerprint == identities[-1]
    assert identities[0] != identities[1]


def test_names_tags_and_random_weights_have_identities_of_their_own(tiny_clip: str) -> None:
    specs = [
        OpenClipSpec("mini-clip", pretrained="icons-tiny"),
        OpenClipSpec("mini-clip", pretrained="icons-small"),
        OpenClipSpec("ViT-B-32", pretrained="openai"),
        OpenClipSpec("ViT-B-16", pretrained="openai"),
        OpenClipSpec("ViT-B-16", pretrained="random"),
        OpenClipSpec(tiny_clip),
        OpenClipSpec(tiny_clip, pretrained="random"),
        TimmSpec("timm:test_vit"),
        TimmSpec("timm:test_vit", pretrained="random"),
    ]
    identities = [spec.identity() for spec in specs]
    assert "" not in identities
    assert len(set(identities)) == len(specs)


@pytest.mark.usefixtures("_plugin")
def test_new_weights_of_a_plug_in_change_the_identity(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    section = {"name": f"plugin:{file}"}
    file.write_text("first")
    first = encoder_identity(section)
    file.write_text("second")
    assert encoder_identity(section) != first
    assert create_encoder(f"plugin:{file}") == PluginSpec(f"plugin:{file}")  # type: ignore[comparison-overlap]


@pytest.mark.usefixtures("_plugin")
def test_an_encoder_without_an_identity_is_refused() -> None:
    def without_identity(name: str) -> object:
        return object()

    ENCODERS.add("bad", without_identity, "of a careless package")
    with pytest.raises(InputError, match=r"encoder 'bad' must be registered with .*`identity\(\)`.*object lacks"):
        encoder_spec({"name": "bad:model"})


def test_settings_are_checked() -> None:
    with pytest.raises(InputError, match="'mini-clip': unknown setting `pretrain`. Did you mean 'pretrained'"):
        create_encoder("mini-clip", pretrain="icons-tiny")
    with pytest.raises(InputError, match="`precision` must be 'fp32' or 'bf16', got 'fp16'"):
        create_encoder("timm:test_vit", precision="fp16")


def test_a_folders_fingerprint_covers_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    fingerprints = [file_fingerprint(tmp_path)]
    (tmp_path / "a").rename(tmp_path / "b")
    fingerprints.append(file_fingerprint(tmp_path))
    (tmp_path / "c").write_text("")
    fingerprints.append(file_fingerprint(tmp_path))
    assert len(set(fingerprints)) == 3
