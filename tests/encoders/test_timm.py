"""The timm adapter against plain timm, on the tiny models that timm keeps for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from imbalance_vlm import InputError, run
from imbalance_vlm.encoders.factory import create_encoder
from tests.data.images import smooth

MODELS = ["test_vit", "test_convnext", "test_efficientnet", "test_resnet", "test_vit4", "test_mambaout"]


def refused(name: str, *words: str, **settings: Any) -> None:
    with pytest.raises(InputError) as error:
        create_encoder(name, **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@torch.no_grad()
def test_features_are_those_of_timm(name: str) -> None:
    encoder = create_encoder(f"timm:{name}", pretrained="random")
    size = encoder.module.pretrained_cfg["input_size"]  # type: ignore[index, union-attr]
    batch = torch.rand(2, *size)
    pooled = encoder.image_features(batch, "embedding")
    torch.testing.assert_close(pooled, encoder.module(batch))
    assert pooled.shape == (2, encoder.width("embedding"))
    assert torch.equal(encoder.image_features(batch, "class_token"), pooled)
    tokens = encoder.image_features(batch, "tokens")
    assert tokens.shape[0] == 2
    assert tokens.shape[1] > 1
    assert tokens.shape[2] == encoder.width("tokens")


@torch.no_grad()
def test_the_first_token_is_the_class_token_or_the_mean() -> None:
    for name, has_class_token in (("test_vit", True), ("test_convnext", False)):
        encoder = create_encoder(f"timm:{name}", pretrained="random")
        batch = torch.rand(2, *encoder.module.pretrained_cfg["input_size"])  # type: ignore[index, union-attr]
        tokens = encoder.image_features(batch, "tokens")
        if has_class_token:
            torch.testing.assert_close(tokens, encoder.module.forward_features(batch))  # type: ignore[operator]
        else:
            torch.testing.assert_close(tokens[:, 0], tokens[:, 1:].mean(1))


def test_the_models_own_preprocessing_is_used(name: str) -> None:
    encoder = create_encoder(f"timm:{name}", pretrained="random")
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder.module))
    image = smooth(0, 260, 190)
    assert torch.equal(encoder.preprocessing(image), transform(image))


def test_a_local_checkpoint_with_or_without_its_classifier(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=10)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    encoder = create_encoder("timm:test_vit", pretrained=str(tmp_path / "w.pt"))
    for key, value in encoder.module.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_weights_of_another_architecture_name_a_tensor(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "w.pt")
    refused("timm:test_vit", "another architecture", "expected", pretrained=str(tmp_path / "w.pt"))
    torch.save(timm.create_model("test_convnext").state_dict(), tmp_path / "c.pt")
    refused("timm:test_vit", "another architecture", "got nothing", pretrained=str(tmp_path / "c.pt"))
    deeper = timm.create_model("test_vit", depth=9)
    torch.save(deeper.state_dict(), tmp_path / "d.pt")
    refused("timm:test_vit", "blocks.6.norm1.weight: expected nothing", pretrained=str(tmp_path / "d.pt"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x08\0\0\0\0\0\0\0{}"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: bytes, suffix: str) -> None:
    file = tmp_path / f"w.{suffix}"
    file.write_bytes(content)
    refused("timm:test_vit", file.name, pretrained=str(file))


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "evil": Path.touch}, tmp_path / "evil.pt")
    refused("timm:test_vit", "evil.pt", pretrained=str(tmp_path / "evil.pt"))


def test_unknown_models_and_files_are_refused(tmp_path: Path) -> None:
    refused("timm:resnet5", "unknown timm model 'resnet5'", "Did you mean 'resnet50'?")
    refused("timm:test_vit", "no such file", pretrained=str(tmp_path / "nowhere.pt"))
    words = ("`pretrained`, where it is not true or 'random', must be a file", "a folder; name a file in it")
    refused("timm:test_vit", *words, pretrained=str(tmp_path))
    refused("timm:coatnet_0_224", "timm keeps no weights", pretrained=True)


def test_text_is_refused() -> None:
    encoder = create_encoder("timm:test_vit", pretrained="random")
    for ask in (lambda: encoder.text_features(["a"], ["{}"]), lambda: encoder.text_in("embedding", torch.ones(1))):
        with pytest.raises(InputError, match="image backbone without a text tower.*need an open_clip model"):
            ask()


def test_random_weights_are_always_the_same() -> None:
    torch.manual_seed(1)
    first = create_encoder("timm:test_vit", pretrained="random")
    torch.manual_seed(2)
    assert first.fingerprint == create_encoder("timm:test_vit", pretrained="random").fingerprint


@pytest.mark.parametrize("head", ["linear", "decoder"])
def test_a_backbone_runs_through_the_whole_pipeline(recipe: dict[str, Any], head: str) -> None:
    encoder = {"name": "timm:test_convnext", "pretrained": "random"}
    result = run(recipe | {"encoder": encoder, "head": head}, {"training.epochs": 1})
    assert 0 <= result.scores["overall"] <= 100  # type: ignore[operator]
