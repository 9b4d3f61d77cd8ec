"""The open_clip adapter against plain open_clip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError, run
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from tests.conftest import TINY_CLIP

NAMES = ("red apple", "blue car", "cat")
TEMPLATES = ("a photo of a {}.", "the {}", "{}")


@pytest.fixture(scope="module")
def plain(tiny_clip: str) -> Any:
    """open_clip's own model, preprocessing and tokenizer."""
    model, _, preprocess = open_clip.create_model_and_transforms(tiny_clip)
    return model.eval(), preprocess, open_clip.get_tokenizer(tiny_clip)


@pytest.fixture
def encoder(tiny_clip: str) -> OpenClipEncoder:
    return create_encoder(tiny_clip)  # type: ignore[return-value]


@pytest.fixture
def tiny_folder(tiny_clip: str, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_clip.removeprefix("local-dir:"), tmp_path / "model"))


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny architecture that open_clip knows by name."""
    config = tmp_path_factory.mktemp("configs") / "ViT-tiny-test.json"
    config.write_text(json.dumps(TINY_CLIP["model_cfg"]))
    open_clip.add_model_config(config)
    return "ViT-tiny-test"


def make_image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 22, 3), dtype=np.uint8))


def pixels(encoder: OpenClipEncoder) -> Tensor:
    return torch.stack([encoder.preprocessing(make_image(seed)) for seed in range(3)])


def refused(*words: str, **settings: Any) -> None:
    with pytest.raises(InputError) as error:
        create_encoder(settings.pop("name"), **settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_the_models_own_preprocessing_is_used(encoder: OpenClipEncoder, plain: Any) -> None:
    _, preprocess, _ = plain
    assert torch.equal(encoder.preprocessing(make_image()), preprocess(make_image()))
    assert encoder.preprocessing.std == (0.25, 0.25, 0.25), "of the tiny model, not ImageNet's"


@torch.no_grad()
def test_image_features_are_encode_image(encoder: OpenClipEncoder, plain: Any) -> None:
    batch = pixels(encoder)
    assert torch.equal(encoder.image_features(batch, "embedding"), plain[0].encode_image(batch))


@torch.no_grad()
def test_an_underscore_in_a_name_is_read_as_a_space(encoder: OpenClipEncoder) -> None:
    spoken, written = (encoder.text_features([name, "cat"], TEMPLATES) for name in ("red apple", "red_apple"))
    assert torch.equal(spoken, written)


def test_text_features_are_renormalised_means_over_templates(encoder: OpenClipEncoder, plain: Any) -> None:
    model, _, tokenizer = plain
    expected = []
    for name in NAMES:
        unit = [F.normalize(model.encode_text(tokenizer([t.format(name)])), dim=-1)[0] for t in TEMPLATES]
        mean = sum(unit) / len(unit)
        expected.append(mean / mean.norm())
    torch.testing.assert_close(encoder.text_features(NAMES, TEMPLATES), torch.stack(expected))
    in_small_batches = encoder.text_features(NAMES, TEMPLATES, batch_size=2)
    torch.testing.assert_close(in_small_batches, torch.stack(expected))


@torch.no_grad()
def test_projected_class_token_is_the_embedding(encoder: OpenClipEncoder, plain: Any) -> None:
    """Tokens are taken after the final norm: projecting the first gives encode_image."""
    batch = pixels(encoder)
    tokens = encoder.image_features(batch, "tokens")
    assert tokens.shape == (3, 1 + 4, 32)
    torch.testing.assert_close(tokens[:, 0] @ plain[0].visual.proj, plain[0].encode_image(batch))
    torch.testing.assert_close(encoder.image_features(batch, "class_token"), tokens[:, 0])


@torch.no_grad()
def test_text_directions_before_the_projection_give_the_same_products(encoder: OpenClipEncoder, plain: Any) -> None:
    text = encoder.text_features(NAMES, TEMPLATES)
    directions = encoder.text_in("class_token", text)
    tokens = encoder.image_features(pixels(encoder), "class_token")
    lengths = (text @ plain[0].visual.proj.t()).norm(dim=-1)
    torch.testing.assert_close(tokens @ directions.t() * lengths, tokens @ plain[0].visual.proj @ text.t())
    assert torch.equal(encoder.text_in("embedding", text), text)


@torch.no_grad()
def test_zero_shot_is_the_example_of_open_clips_readme(recipe: dict[str, Any], plain: Any, images: Path) -> None:
    model, preprocess, tokenizer = plain
    result = run(recipe, {"tuning": "zero_shot", "head": "text", "data.templates": list(TEMPLATES)})
    rows = (result.path / "predictions.csv").read_text().splitlines()[1:]
    names = ["blue car", "green leaf", "red apple", "white cup"]
    text = [F.normalize(model.encode_text(tokenizer([t.format(n) for t in TEMPLATES])), dim=-1).mean(0) for n in names]
    classifier = F.normalize(torch.stack(text), dim=-1)
    assert len(rows) == 20
    for row in rows:
        path, _, predicted, confidence = row.split(",")
        image = preprocess(Image.open(images / path).convert("RGB"))[None]
        features = F.normalize(model.encode_image(image), dim=-1)
        probabilities = (model.logit_scale.exp() * features @ classifier.t()).softmax(-1)[0]
        assert names[int(probabilities.argmax())] == predicted
        assert float(probabilities.max()) == pytest.approx(float(confidence), abs=1e-4)


def test_bfloat16_is_close_and_comes_back_as_float32(tiny_clip: str, encoder: OpenClipEncoder) -> None:
    batch = pixels(encoder)
    half = create_encoder(tiny_clip, precision="bf16").image_features(batch, "embedding")
    assert half.dtype == torch.float32
    exact = encoder.image_features(batch, "embedding")
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


# -- where weights come from -----------------------------------------------------------------------------------------


def test_a_pickled_checkpoint_is_loaded_as_weights_only(architecture: str, tmp_path: Path, plain: Any) -> None:
    torch.save(plain[0].state_dict(), tmp_path / "good.pt")
    loaded = create_encoder(architecture, pretrained=str(tmp_path / "good.pt"))
    assert torch.equal(loaded.module.visual.proj, plain[0].visual.proj)  # type: ignore[union-attr]
    torch.save({"state_dict": plain[0].state_dict(), "evil": Path.touch}, tmp_path / "evil.pt")
    refused("evil.pt", name=architecture, pretrained=str(tmp_path / "evil.pt"))


@pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(1000)])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_file_that_holds_no_weights_is_refused(
    architecture: str, tmp_path: Path, content: bytes, suffix: str
) -> None:
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(content)
    refused(file.name, name=architecture, pretrained=str(file))


def test_a_local_directory_with_an_empty_configuration_is_refused(tiny_folder: Path) -> None:
    (tiny_folder / "open_clip_config.json").write_text("{}")
    refused("local-dir", "could not be made", name=f"local-dir:{tiny_folder}")


def test_unknown_models_tags_and_files_are_refused_with_suggestions(tmp_path: Path) -> None:
    refused("unknown encoder 'ViT-B-61'", "Did you mean 'ViT-B-16", "local-dir:PATH", name="ViT-B-61")
    refused("must be a tag", "openai", "Did you mean 'openai'?", name="ViT-B-16", pretrained="openia")
    refused("must be a tag", "got None", name="ViT-B-16")
    refused("a local weights file", "nowhere.pt", name="ViT-B-16", pretrained=str(tmp_path / "nowhere.pt"))


def test_random_weights_are_always_the_same(architecture: str) -> None:
    """Results must depend neither on the seed before nor on earlier runs."""
    torch.manual_seed(1)
    first = create_encoder(architecture, pretrained="random")
    torch.manual_seed(2)
    assert first.fingerprint == create_encoder(architecture, pretrained="random").fingerprint


def test_logging_is_left_as_it_was(tiny_clip: str) -> None:
    import logging

    level = logging.getLogger().level
    create_encoder(tiny_clip)
    assert logging.getLogger().level == level


# -- towers of other kinds ---------------------------------------------------------------------------------------------


def on_timm(tmp_path: Path, name: str, **vision: Any) -> OpenClipEncoder:
    """An open_clip model around one of the tiny towers that timm keeps for tests."""
    tower = {"timm_model_name": name, "image_size": 160, "timm_proj": "linear", "timm_pool": ""} | vision
    config = {**TINY_CLIP["model_cfg"], "vision_cfg": tower}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return create_encoder(f"local-dir:{tmp_path}", pretrained="random")  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_tokens_of_a_tower_from_timm_are_its_own(tmp_path: Path, name: str) -> None:
    encoder = on_timm(tmp_path, name)
    batch = torch.rand(2, 3, 160, 160)
    trunk: Any = encoder.module.visual.trunk  # type: ignore[union-attr]
    theirs = trunk.forward_features(batch)
    tokens = encoder.image_features(batch, "tokens")
    assert tokens.shape[::2] == (2, encoder.width("tokens"))
    if name == "test_vit":  # its class token comes first
        torch.testing.assert_close(tokens, theirs)
    else:
        torch.testing.assert_close(tokens[:, 1:], theirs.flatten(2).transpose(1, 2))
        torch.testing.assert_close(tokens[:, 0], theirs.mean((2, 3)))
    with pytest.raises(InputError, match="classifies by a class token"):
        encoder.image_features(batch, "class_token")
    encoder.final_norm = False
    with pytest.raises(InputError, match="final_norm must be true"):
        encoder.image_features(batch, "tokens")


@torch.no_grad()
def test_a_tower_that_pools_by_attention_has_no_normed_tokens(tmp_path: Path) -> None:
    """CoCa's final norm comes after the pooling, and has another width."""
    config = json.loads(json.dumps(TINY_CLIP))
    config["model_cfg"]["vision_cfg"] |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": False}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder: Any = create_encoder(f"local-dir:{tmp_path}", pretrained="random")
    batch = torch.rand(2, 3, 16, 16)
    for kind in ("tokens", "class_token"):
        with pytest.raises(InputError, match="final_norm to false"):
            encoder.image_features(batch, kind)
    encoder.final_norm = False
    assert encoder.image_features(batch, "tokens").shape == (2, 5, 32)


@torch.no_grad()
def test_a_tower_that_averages_its_tokens_has_no_trained_class_token(tmp_path: Path) -> None:
    config = json.loads(json.dumps(TINY_CLIP))
    config["model_cfg"]["vision_cfg"] |= {"pool_type": "avg"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    encoder = create_encoder(f"local-dir:{tmp_path}", pretrained="random")
    with pytest.raises(InputError, match="classifies by a class token"):
        encoder.image_features(torch.rand(2, 3, 16, 16), "class_token")


def test_a_text_tower_from_hugging_face_needs_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    from imbalance_vlm.encoders import open_clip as ours

    monkeypatch.setattr(ours, "has_transformers", lambda: False)
    refused("needs the package transformers", "roberta-base", name="roberta-ViT-B-32", pretrained="random")
