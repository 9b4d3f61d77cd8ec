"""EVA's towers: layer scales without a module, query, key and value in one matrix or three, norms after branches."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import timm
import torch
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from imbalance_vlm import InputError
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.towers import transformer_tower
from imbalance_vlm.tuning.peft.vpt import VPT
from tests.tuning.peft.tiny_towers import ADDED, CLASSES, EVA, METHODS, features, pixels, tower, train_steps

ROTATED = [name for name, settings in EVA.items() if "use_rot_pos_emb" in settings]
kinds = pytest.mark.parametrize("kind", EVA)
names = pytest.mark.parametrize("name", ADDED)


def perturbed(net: nn.Module) -> nn.Module:
    """The tower under tuning, with random changes of all that is trained."""
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return net


# -- formulas ----------------------------------------------------------------------------------------------------------


def low_rank(up: Tensor, down: Tensor) -> Tensor:
    change = np.zeros((len(up), down.shape[1]))
    for i in range(change.shape[0]):
        for j in range(change.shape[1]):
            change[i, j] = sum(up[i, r].item() * down[r, j].item() for r in range(3)) / 3
    return torch.from_numpy(change)


@kinds
def test_lora_changes_query_and_value_alone(kind: str) -> None:
    net, plain = tower(kind), tower(kind)
    tuned = LoRA(rank=3).apply(net, CLASSES)
    perturbed(net)
    trained = {key: value.detach() for key, value in tuned.named_parameters().items()}
    for number, block in enumerate(plain.blocks):
        for part in "qv":
            up, down = (trained[f"blocks.{number}.lora.attention_in.{part}_{end}"] for end in ("up", "down"))
            if block.attn.qkv is None:
                rows = getattr(block.attn, f"{part}_proj").weight.data
            else:
                rows = block.attn.qkv.weight.data["qkv".index(part) * 32 :][:32]
            rows += low_rank(up, down)
    assert len(trained) == 8
    torch.testing.assert_close(features(net), features(plain), rtol=0, atol=1e-11)
    assert not torch.allclose(features(net), features(tower(kind)), rtol=0, atol=1e-3)


@kinds
def test_ssf_scales_and_shifts_the_output_of_every_layer(kind: str) -> None:
    """In a second tower, by hooks after every layer that is called; where query, key and value are read, by rows."""
    net, plain = tower(kind), tower(kind)
    tuned = METHODS["ssf"].apply(net, CLASSES)
    perturbed(net)
    trained = {key: value.detach() for key, value in tuned.named_parameters().items()}
    count = 0

    def transform(module: nn.Module, site: str, rows: slice = slice(None)) -> None:
        nonlocal count
        scale, shift = trained[f"{site}.scale"][rows], trained[f"{site}.shift"][rows]
        count += 2 * len(scale)
        module.register_forward_hook(lambda module, args, output: output * scale + shift)

    for number, block in enumerate(plain.blocks):
        site, attention = f"blocks.{number}.ssf", block.attn
        if attention.qkv is None:
            start = 0
            for module in (attention.q_proj, attention.k_proj, attention.v_proj):
                transform(module, f"{site}.attention_in", slice(start, start + module.out_features))
                start += module.out_features
        elif getattr(attention, "q_bias", None) is None:
            transform(attention.qkv, f"{site}.attention_in")
        else:
            scale, shift = trained[f"{site}.attention_in.scale"], trained[f"{site}.attention_in.shift"]
            count += 2 * len(scale)
            for row in range(96):
                attention.qkv.weight.data[row] *= scale[row]
                bias = (attention.q_bias, attention.k_bias, attention.v_bias)[row // 32].data
                bias[row % 32] = bias[row % 32] * scale[row] + shift[row]
        transform(attention.proj, f"{site}.attention_out")
        for part, parent in (("attention", attention), ("mlp", block.mlp)):
            for name, module in parent.named_children():
                if isinstance(module, nn.LayerNorm) or (part == "mlp" and isinstance(module, nn.Linear)):
                    transform(module, f"{site}.{part}_{name}")
        transform(block.norm1, f"{site}.norm1")
        transform(block.norm2, f"{site}.norm2")
    for name in ("norm_pre", "norm", "fc_norm"):
        if isinstance(getattr(plain, name), nn.LayerNorm):
            transform(getattr(plain, name), f"ssf.{name}")
    assert count == tuned.count()
    torch.testing.assert_close(features(net), features(plain), rtol=0, atol=1e-11)
    assert not torch.allclose(features(net), features(tower(kind)), rtol=0, atol=1e-3)


def normed(x: Tensor) -> Tensor:
    rows = [(row - row.mean()) / torch.sqrt(((row - row.mean()) ** 2).mean() + 1e-5) for row in x.flatten(0, 1)]
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("name", ["adaptformer", "adapter"])
@pytest.mark.parametrize("kind", ["eva01", "packed_gate", "post_norm"])
def test_bottlenecks_compute_their_formula_in_other_blocks(kind: str, name: str) -> None:
    net, plain = tower(kind), tower(kind).blocks[1]
    METHODS[name].apply(net, CLASSES)
    perturbed(net)
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 5, 32)))
    layer = net.blocks[1].get_submodule(name)

    def side(y: Tensor) -> Tensor:
        inner = (normed(y) * layer.norm.weight + layer.norm.bias) @ layer.down.weight.T + layer.down.bias
        return inner.clamp(min=0) @ layer.up.weight.T + layer.up.bias

    with torch.no_grad():
        if kind == "post_norm":
            h = x + plain.norm1(plain.attn(x))
            mlp, scale = plain.mlp(h), plain.norm2
        else:
            scales = [1.0 if scale is None else scale for scale in (plain.gamma_1, plain.gamma_2)]
            h = x + scales[0] * plain.attn(plain.norm1(x))
            mlp = plain.mlp(plain.norm2(h))

            def scale(y: Tensor) -> Tensor:
                return scales[1] * y

        parallel = h + scale(mlp) + layer.scale * side(h) if name == "adaptformer" else None
        wanted = h + scale(mlp + side(mlp)) if parallel is None else parallel
        torch.testing.assert_close(net.blocks[1](x), wanted, rtol=0, atol=1e-10)
        assert (wanted - plain(x)).abs().max() > 1e-2


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("kind", ["eva01", "post_norm"])
def test_vpt_inserts_tokens_where_positions_are_added_before_the_blocks(kind: str, deep: bool) -> None:
    net, plain = tower(kind), tower(kind)
    tuned = VPT(tokens=3, deep=deep).apply(net, CLASSES)
    prompts = [value.detach() for value in tuned.named_parameters().values()]
    assert len(prompts) == (2 if deep else 1)
    with torch.no_grad():
        x = plain.patch_embed(pixels())
        x = torch.cat([plain.cls_token.expand(3, -1, -1), x], dim=1) + plain.pos_embed
        class_token, patches, prompt = x[:, :1], x[:, 1:], prompts[0].expand(3, -1, -1)
        for number, block in enumerate(plain.blocks):
            prompt = prompts[number].expand(3, -1, -1) if deep else prompt
            y = block(torch.cat([class_token, prompt, patches], dim=1))
            class_token, prompt, patches = y[:, :1], y[:, 1:4], y[:, 4:]
        wanted = plain.forward_head(plain.norm(torch.cat([class_token, patches], dim=1)))
    torch.testing.assert_close(features(net), wanted, rtol=0, atol=1e-11)
    tuned.remove()
    assert torch.equal(features(net), features(tower(kind)))


# -- what is refused ---------------------------------------------------------------------------------------------------


def relative(**settings: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return VisionTransformerRelPos(**(sizes | {"class_token": True, "init_values": 0.3} | settings)).double().eval()


@pytest.mark.parametrize(
    ("net", "words"),
    [
        *((functools.partial(tower, kind), r"Eva has rotary positions \(rope\)") for kind in ROTATED),
        (relative, r"VisionTransformerRelPos has relative position biases \(rel_pos\)"),
        (functools.partial(relative, shared_rel_pos=True), r"relative position biases \(shared_rel_pos\)"),
        (functools.partial(relative, rel_pos_type="bias", class_token=False), r"relative position biases \(rel_pos\)"),
    ],
)
@pytest.mark.parametrize("name", ["vpt", "vpt_shallow"])
def test_no_tokens_where_attention_uses_positions(net: object, words: str, name: str) -> None:
    module = net()  # type: ignore[operator]
    before = features(module)
    with pytest.raises(InputError, match=rf"method 'vpt' inserts tokens .*, and .*{words}.*'lora'"):
        METHODS[name].apply(module, CLASSES)
    assert all(parameter.requires_grad for parameter in module.parameters())
    with LoRA().apply(module, CLASSES):
        assert torch.equal(features(module), before)


@names
def test_relative_biases_work_with_all_other_methods(name: str) -> None:
    for settings in ({}, {"shared_rel_pos": True}):
        net = relative(**settings)
        before = features(net)
        with METHODS[name].apply(net, CLASSES) as tuned:
            assert torch.equal(features(net), before)
            train_steps(tuned)
            assert not torch.allclose(features(net), before)
        assert torch.equal(features(net), before)


def test_an_attention_without_query_key_and_value_is_refused() -> None:
    net = tower("eva02")
    net.blocks[1].attn.k_proj = None
    with pytest.raises(InputError, match=r"an attention with query, key and value \(in_proj_weight, qkv, or q_proj"):
        LoRA().apply(net, CLASSES)
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "norms"),
    [
        ("eva02_base_patch16_clip_224", 4),
        ("eva_giant_patch14_clip_224", 2),
        ("eva02_enormous_patch14_clip_224", 2),
        ("vit_pe_core_tiny_patch16_384", 2),
    ],
)
def test_the_towers_that_open_clip_takes_from_timm_have_the_parts(name: str, norms: int) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0, depth=1)
        (block,) = transformer_tower(net, "lora").blocks
        assert tuple(block.attention_in().base[0].shape) == (3 * net.embed_dim, net.embed_dim)
        assert len(block.norms()) == norms
