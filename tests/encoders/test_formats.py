"""Weights in every format, through the encoder; Hugging Face's own models are the oracle of the conversion."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import timm_model
from safetensors.torch import save_file
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.formats import detect, read_weights
from tests.conftest import TINY_CLIP
from tests.encoders import hf_layout as hf

CLIP = {**TINY_CLIP["model_cfg"], "embed_dim": 12}
SIGLIP = {
    "embed_dim": hf.WIDTH,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 16,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": hf.CONTEXT,
        "vocab_size": 100,
        "width": hf.WIDTH,
        "heads": 2,
        "layers": hf.LAYERS,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
        "hf_tokenizer_name": "nobody/has-this",
    },
}

# What transformers 5.23 makes of `hf_layout.inputs` with `hf_layout.weights`: the first four numbers of each feature.
CLIP_IMAGES = [[-1.88536, 0.56556, -0.51488, 0.56606], [-1.75331, 0.61963, -0.48796, 0.51688]]
CLIP_TEXTS = [[-0.32558, 0.19379, 0.07499, 0.35546], [-0.23978, 0.18926, 0.05582, 0.37423]]
SIGLIP_IMAGES = [[1.05664, 2.16038, 2.43121, 0.7264], [3.74962, 0.87946, 4.52304, 1.41822]]
SIGLIP_TEXTS = [[0.18698, 0.81257, -0.30186, -0.34957], [0.49382, 0.69531, -0.14, -0.46666]]


@pytest.fixture(scope="module", autouse=True)
def names(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tiny architectures that open_clip knows by name: ViT-fmt, ViT-fmt-quickgelu, ViT-fmt-wide and ViT-fmt-SigLIP."""
    folder = tmp_path_factory.mktemp("configs")
    wide = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "width": 48, "head_width": 24}}
    architectures = {
        "ViT-fmt": CLIP,
        "ViT-fmt-quickgelu": CLIP | {"quick_gelu": True},
        "ViT-fmt-wide": wide,
        "ViT-fmt-SigLIP": SIGLIP,
    }
    for name, config in architectures.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


_TOKENIZER = cache(open_clip.SimpleTokenizer)


@pytest.fixture(autouse=True)
def _one_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the vocabulary takes longer than everything else here."""
    monkeypatch.setattr(open_clip.factory, "SimpleTokenizer", _TOKENIZER)


@pytest.fixture(autouse=True)
def _small_siglip(monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip gives timm a model's name alone; the tiny tower has timm's own parts in smaller numbers."""
    real, size = timm.create_model, {"embed_dim": hf.WIDTH, "depth": hf.LAYERS, "num_heads": 2}
    small = size | {"img_size": 16, "patch_size": hf.PATCH, "act_layer": "gelu_tanh"}

    def create(name: str, **settings: Any) -> nn.Module:
        return real(name, **settings, **(small if name == "vit_base_patch16_siglip_224" else {}))

    monkeypatch.setattr(timm_model.timm, "create_model", create)


def refused(name: str, pretrained: object, *words: str) -> None:
    with pytest.raises(InputError) as error:
        create_encoder(name, pretrained=str(pretrained))
    assert all(word in str(error.value) for word in words), str(error.value)


def plain(quick_gelu: bool = False) -> nn.Module:
    torch.manual_seed(3)
    return open_clip.CLIP(**CLIP, quick_gelu=quick_gelu).eval()


def activations(module: nn.Module) -> set[str]:
    return {type(part).__name__ for part in module.modules() if "GELU" in type(part).__name__}


def assert_loaded(encoder: Any, state: dict[str, Tensor]) -> None:
    loaded = encoder.module.state_dict()
    assert loaded.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(loaded[name], value.to(loaded[name].dtype)), name


def hf_folder(folder: Path, kind: str, **changes: Any) -> Path:
    """A model as save_pretrained writes it."""
    folder.mkdir(exist_ok=True)
    shapes, config = {
        "clip": (hf.clip_shapes(), hf.CLIP_CONFIG),
        "siglip": (hf.siglip_shapes(), hf.SIGLIP_CONFIG),
    }[kind]
    save_file(hf.weights(shapes), folder / "model.safetensors")
    towers = {name: {**config[name], **changes} for name in ("vision_config", "text_config")}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps({**config, **towers}))
    return folder


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "hf-clip", "clip")


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    return hf_folder(tmp_path / "hf-siglip", "siglip")


# -- open_clip's own format --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "safetensors"])
def test_a_plain_state_dict(tmp_path: Path, suffix: str) -> None:
    state = plain().state_dict()
    file = tmp_path / f"weights.{suffix}"
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    encoder = create_encoder("ViT-fmt", pretrained=str(file))
    assert_loaded(encoder, state)
    assert encoder.pretrained == str(file)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_training_checkpoint_with_the_names_of_wrappers(tmp_path: Path, prefix: str) -> None:
    state = plain().state_dict()
    wrapped = {f"{prefix}{name}": value for name, value in state.items()}
    optimizer = torch.optim.AdamW(plain().parameters()).state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": optimizer}, tmp_path / "epoch_3.pt")
    assert_loaded(create_encoder("ViT-fmt", pretrained=str(tmp_path / "epoch_3.pt")), state)


def test_the_text_towers_names_may_be_on_the_model_or_under_text(tmp_path: Path) -> None:
    state = plain().state_dict()
    moved = open_clip.model.convert_to_custom_text_state_dict(dict(state))
    assert "text.ln_final.weight" in moved
    save_file(moved, tmp_path / "custom.safetensors")
    assert_loaded(create_encoder("ViT-fmt", pretrained=str(tmp_path / "custom.safetensors")), state)


def test_half_precision_is_loaded_into_full(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in plain().state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    encoder = create_encoder("ViT-fmt", pretrained=str(tmp_path / "half.safetensors"))
    assert_loaded(encoder, state)
    assert {value.dtype for value in encoder.module.parameters()} == {torch.float32}


def test_a_folder_with_weights(tmp_path: Path) -> None:
    state = plain().state_dict()
    save_file(state, tmp_path / "open_clip_model.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")  # less preferred, and never opened
    assert_loaded(create_encoder("ViT-fmt", pretrained=str(tmp_path)), state)


def test_weights_in_several_files(tmp_path: Path) -> None:
    state = plain().state_dict()
    parts = [dict(list(state.items())[:20]), dict(list(state.items())[20:])]
    index = {}
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{number}.safetensors")
        index |= dict.fromkeys(part, f"model-{number}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert_loaded(create_encoder("ViT-fmt", pretrained=str(tmp_path)), state)


def test_a_folder_without_weights_or_with_too_many(tmp_path: Path) -> None:
    refused("ViT-fmt", tmp_path, "must hold weights", "none")
    for name in ("a", "b"):
        save_file(plain().state_dict(), tmp_path / f"{name}.safetensors")
    refused("ViT-fmt", tmp_path, "2 files (a.safetensors", "name one of them")


# -- OpenAI's ----------------------------------------------------------------------------------------------------------


class Archive(nn.Module):
    """What OpenAI's archives hold: the parameters under their names, and three sizes beside them."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for step in path:
                if step not in module._modules:
                    module.add_module(step, nn.Module())
                module = module.get_submodule(step)
            module.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x


def openai_state(half: bool = True) -> dict[str, Tensor]:
    state = plain(quick_gelu=True).state_dict()
    sizes = {"input_resolution": 16, "context_length": 16, "vocab_size": 49408}
    tensors = {name: value.half() if half else value for name, value in state.items()}
    return tensors | {name: torch.tensor(size) for name, size in sizes.items()}


@pytest.mark.parametrize("name", ["ViT-fmt", "ViT-fmt-quickgelu"])
@pytest.mark.parametrize("archive", [True, False])
def test_openais_archive_and_state_dict_get_quick_gelu_under_either_name(
    tmp_path: Path, name: str, archive: bool
) -> None:
    state, file = openai_state(), tmp_path / "ViT-fmt.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.jit.save(torch.jit.trace(Archive(state), torch.ones(1)), str(file)) if archive else torch.save(
            state, file
        )
    encoder = create_encoder(name, pretrained=str(file))
    assert activations(encoder.module) == {"QuickGELU"}
    expected = plain(quick_gelu=True).half().float()
    images, texts = hf.inputs(49408)
    with torch.no_grad():
        computed = encoder.image_features(images, "embedding"), encoder.module.encode_text(texts)  # type: ignore[operator]
        torch.testing.assert_close(computed, (expected.encode_image(images), expected.encode_text(texts)))  # type: ignore[operator]


def test_open_clips_files_keep_the_activation_of_their_architecture(tmp_path: Path) -> None:
    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    for name, activation in (("ViT-fmt", "GELU"), ("ViT-fmt-quickgelu", "QuickGELU")):
        encoder = create_encoder(name, pretrained=str(tmp_path / "w.safetensors"))
        assert activations(encoder.module) == {activation}


def test_one_file_under_two_activations_has_two_fingerprints(tmp_path: Path) -> None:
    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    encoders = [
        create_encoder(name, pretrained=str(tmp_path / "w.safetensors")) for name in ("ViT-fmt", "ViT-fmt-quickgelu")
    ]
    assert encoders[0].fingerprint != encoders[1].fingerprint


def test_a_tag_gets_the_activation_it_was_trained_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ViT-B-16 with the tag openai is the most usual of all mistakes; open_clip only warns."""
    from open_clip import pretrained as library

    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    tag = library._pcfg(quick_gelu=True) | {"file": str(tmp_path / "w.safetensors")}
    monkeypatch.setitem(library._PRETRAINED, "ViT-fmt", {"openai": tag, "other": tag | {"quick_gelu": False}})
    assert activations(create_encoder("ViT-fmt", pretrained="openai").module) == {"QuickGELU"}
    assert activations(create_encoder("ViT-fmt", pretrained="other").module) == {"GELU"}


# -- Hugging Face's ----------------------------------------------------------------------------------------------------


def expect(encoder: Any, vocabulary: int, images: list[list[float]], texts: list[list[float]]) -> None:
    pixels, ids = hf.inputs(vocabulary)
    with torch.no_grad():
        computed = encoder.image_features(pixels, "embedding"), encoder.module.encode_text(ids)
    torch.testing.assert_close(computed[0][:, :4], torch.tensor(images), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(computed[1][:, :4], torch.tensor(texts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ViT-fmt", "ViT-fmt-quickgelu"])
@pytest.mark.parametrize("what", ["folder", "file", "pickled"])
def test_hugging_face_clip_gives_the_features_of_transformers(clip_folder: Path, name: str, what: str) -> None:
    if what == "pickled":
        torch.save(hf.weights(hf.clip_shapes()), clip_folder / "pytorch_model.bin")
        (clip_folder / "model.safetensors").unlink()
    path = clip_folder / "model.safetensors" if what == "file" else clip_folder
    expect(create_encoder(name, pretrained=str(path)), 49408, CLIP_IMAGES, CLIP_TEXTS)


def test_hugging_face_clip_with_plain_gelu(tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "gelu", "clip", hidden_act="gelu")
    assert activations(create_encoder("ViT-fmt", pretrained=str(folder)).module) == {"GELU"}
    refused("ViT-fmt-quickgelu", folder, "trained with plain GELU", "set encoder.name to 'ViT-fmt'")


def test_hugging_face_clip_without_its_config_needs_a_name_that_implies_the_activation(clip_folder: Path) -> None:
    (clip_folder / "config.json").unlink()
    refused("ViT-fmt", clip_folder, "config.json", "QuickGELU", "'-quickgelu'")
    expect(create_encoder("ViT-fmt-quickgelu", pretrained=str(clip_folder)), 49408, CLIP_IMAGES, CLIP_TEXTS)


@pytest.mark.parametrize("what", ["", "model.safetensors"])
def test_hugging_face_siglip_gives_the_features_of_transformers(siglip_folder: Path, what: str) -> None:
    expect(create_encoder("ViT-fmt-SigLIP", pretrained=str(siglip_folder / what)), 100, SIGLIP_IMAGES, SIGLIP_TEXTS)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_tensor_is_renamed(tmp_path: Path, kind: str) -> None:
    weights = read_weights(hf_folder(tmp_path / kind, kind))
    shapes = hf.clip_shapes() if kind == "clip" else hf.siglip_shapes()
    assert sum(value.numel() for value in weights.state.values()) == sum(
        torch.Size(shape).numel() for shape in shapes.values()
    )
    assert not any(name.startswith(("vision_model", "text_model")) for name in weights.state)
    model: Callable[..., nn.Module] = open_clip.CLIP if kind == "clip" else open_clip.CustomTextCLIP
    config = {name: value for name, value in (CLIP if kind == "clip" else SIGLIP).items() if name != "custom_text"}
    assert weights.state.keys() == model(**config).state_dict().keys()


def test_buffers_of_position_numbers_are_left_out(clip_folder: Path) -> None:
    state = hf.weights(hf.clip_shapes()) | {"text_model.embeddings.position_ids": torch.arange(16)[None]}
    save_file(state, clip_folder / "model.safetensors")
    expect(create_encoder("ViT-fmt", pretrained=str(clip_folder)), 49408, CLIP_IMAGES, CLIP_TEXTS)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_recorded_features_are_those_of_the_installed_transformers(kind: str) -> None:
    transformers = pytest.importorskip("transformers", reason="the recorded features stand in where it is missing")
    shapes, config, vocabulary, images, texts, model = {
        "clip": (hf.clip_shapes(), hf.CLIP_CONFIG, 49408, CLIP_IMAGES, CLIP_TEXTS, "CLIP"),
        "siglip": (hf.siglip_shapes(), hf.SIGLIP_CONFIG, 100, SIGLIP_IMAGES, SIGLIP_TEXTS, "Siglip"),
    }[kind]
    sections = {name: value for name, value in config.items() if name != "model_type"}  # type: ignore[attr-defined]
    net = getattr(transformers, f"{model}Model")(getattr(transformers, f"{model}Config")(**sections)).eval()
    net.load_state_dict(hf.weights(shapes))  # type: ignore[arg-type]
    pixels, ids = hf.inputs(vocabulary)  # type: ignore[arg-type]
    with torch.no_grad():
        computed = net.get_image_features(pixel_values=pixels), net.get_text_features(input_ids=ids)
    for features, expected in zip(computed, (images, texts), strict=True):
        values = getattr(features, "pooler_output", features)[:, :4]
        torch.testing.assert_close(values, torch.tensor(expected), rtol=1e-4, atol=1e-4)


# -- weights that do not fit -------------------------------------------------------------------------------------


def test_another_architecture_is_named_with_the_tensors_that_differ_and_what_would_fit(
    tmp_path: Path, clip_folder: Path, siglip_folder: Path
) -> None:
    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    shape = "visual.class_embedding: expected (48,), got (32,)"
    refused(
        "ViT-fmt-wide", tmp_path / "w.safetensors", "another architecture than 'ViT-fmt-wide'", shape, "w.safetensors"
    )
    refused("ViT-fmt-wide", tmp_path / "w.safetensors", "Set encoder.name to 'ViT-fmt' or 'ViT-fmt-quickgelu'", " more")
    refused("ViT-fmt-wide", clip_folder, "hf_clip format", "Set encoder.name to 'ViT-fmt-quickgelu',")
    refused("ViT-fmt", siglip_folder, "hf_siglip format", "Set encoder.name to 'ViT-fmt-SigLIP'")
    refused("ViT-fmt-SigLIP", clip_folder, "another architecture", "Set encoder.name to 'ViT-fmt-quickgelu'")


def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    state = plain().state_dict()
    save_file(state | {"visual.extra": torch.zeros(5)}, tmp_path / "more.safetensors")
    refused("ViT-fmt", tmp_path / "more.safetensors", "visual.extra: expected nothing, got (5,)", "None of open_clip's")
    state.pop("visual.proj")
    save_file(state, tmp_path / "less.safetensors")
    refused("ViT-fmt", tmp_path / "less.safetensors", "visual.proj: expected (32, 12), got nothing")


def test_positions_for_another_image_size_are_refused(tmp_path: Path) -> None:
    state = plain().state_dict() | {"visual.positional_embedding": torch.zeros(10, 32)}
    save_file(state, tmp_path / "large.safetensors")
    refused("ViT-fmt", tmp_path / "large.safetensors", "visual.positional_embedding: expected (5, 32), got (10, 32)")


def test_a_hugging_face_file_that_lacks_a_key_is_not_packed_in_part(clip_folder: Path) -> None:
    state = hf.weights(hf.clip_shapes())
    del state["vision_model.encoder.layers.0.self_attn.k_proj.weight"]
    save_file(state, clip_folder / "model.safetensors")
    refused(
        "ViT-fmt",
        clip_folder,
        "another architecture",
        "resblocks.0.attn.in_proj_weight: expected (96, 32), got nothing",
    )


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    state = plain().state_dict()
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    refused("ViT-fmt", tmp_path / "nan.safetensors", "features of images that are not finite")


def test_files_that_hold_no_state_dict(tmp_path: Path, clip_folder: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "empty.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for name in ("empty.pt", "list.pt", "numbers.pt"):
        refused("ViT-fmt", tmp_path / name, name, "no state dict")
    (clip_folder / "config.json").write_text("[]")
    refused("ViT-fmt", clip_folder, "config.json must be a mapping")


def test_formats_by_name() -> None:
    tensor = torch.zeros(1)
    assert detect({"text_model.final_layer_norm.weight": tensor}) == "hf_clip"
    assert detect({"text_model.x": tensor, "vision_model.head.probe": tensor}) == "hf_siglip"
    assert detect({"module.anything": tensor}) == "open_clip"


# -- images and words ------------------------------------------------------------------------------------------------


def mean_of(encoder: Any) -> float:
    return float(encoder.preprocessing.mean[0])


def test_preprocessing_comes_from_the_configuration_beside_the_weights(clip_folder: Path, tmp_path: Path) -> None:
    assert mean_of(create_encoder("ViT-fmt", pretrained=str(clip_folder))) == pytest.approx(0.48145466)
    hugging_face = {
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 1, 1],
        "resample": 2,
        "size": {"height": 16, "width": 16},
    }
    (clip_folder / "preprocessor_config.json").write_text(json.dumps(hugging_face))
    encoder: Any = create_encoder("ViT-fmt", pretrained=str(clip_folder))
    assert mean_of(encoder) == 0.1
    assert (encoder.preprocessing.interpolation, encoder.preprocessing.resize) == ("bilinear", "squash")
    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    config = {"model_cfg": CLIP, "preprocess_cfg": {"mean": [0.4] * 3, "std": [1.0] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert mean_of(create_encoder("ViT-fmt", pretrained=str(tmp_path / "w.safetensors"))) == 0.4


def test_preprocessing_of_a_lone_file_is_that_of_most_tags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from open_clip import pretrained as library

    save_file(plain().state_dict(), tmp_path / "w.safetensors")
    make = partial(create_encoder, "ViT-fmt", pretrained=str(tmp_path / "w.safetensors"))
    tags = {"one": library._slpcfg(), "two": library._slpcfg()}
    monkeypatch.setitem(library._PRETRAINED, "ViT-fmt", tags)
    assert mean_of(make()) == 0.5
    assert not capsys.readouterr().err
    monkeypatch.setitem(library._PRETRAINED, "ViT-fmt", tags | {"three": library._pcfg()})
    assert mean_of(make()) == 0.5
    assert "wrong for three" in capsys.readouterr().err


def test_an_image_tower_works_without_its_tokenizer(siglip_folder: Path) -> None:
    encoder = create_encoder("ViT-fmt-SigLIP", pretrained=str(siglip_folder))
    images, _ = hf.inputs(100)
    assert encoder.image_features(images, "embedding").shape == (2, hf.WIDTH)
    with pytest.raises(InputError, match="Hugging Face tokenizer \\(nobody/has-this\\)"):
        encoder.text_features(["a"], ["{}"])
