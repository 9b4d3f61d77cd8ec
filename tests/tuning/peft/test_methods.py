"""The parameters of each method, and its formula in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.models.vision_transformer import VisionTransformer as TimmTower
from torch import nn

from imbalance_vlm import InputError
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.base import TowerMethod, adaptive_width
from imbalance_vlm.tuning.peft.bitfit import BitFit
from imbalance_vlm.tuning.peft.full import Full, lr_groups, lr_scales
from imbalance_vlm.tuning.peft.layernorm import LayerNorm
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.partial import Partial
from imbalance_vlm.tuning.peft.random_mask import RandomMask
from imbalance_vlm.tuning.peft.ssf import SSF
from imbalance_vlm.tuning.peft.vpt import VPT
from tests.tuning.peft.tiny_towers import CLASSES, METHODS, both, tower, train_steps


@pytest.mark.parametrize(
    ("classes", "width", "count"), [(100, 4, 101_436), (365, 8, 175_212), (1000, 32, 617_868), (8142, 256, 4_749_324)]
)
def test_adaptformer_has_the_published_number_of_parameters(classes: int, width: int, count: int) -> None:
    assert adaptive_width(classes, 12) == width
    with torch.device("meta"):
        towers = [
            OpenClipTower(224, 16, 768, 12, 12, 4.0, output_dim=512),
            TimmTower(img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, num_classes=0),
        ]
    for net in towers:
        tuned = AdaptFormer().apply(net, classes)
        assert tuned.count() == count
        assert sum(math.prod(shape) for _, shape in tuned.describe()) == count
        tuned.remove()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # rank 4: q and v of 12 blocks, D (4, 768) and U (768, 4) each
        ("lora", 12 * 2 * 2 * 4 * 768),
        # scale and shift: norms 2 x 768, qkv 2304, out 768, MLP 3072 + 768; two norms around the blocks
        ("ssf", 2 * (12 * (2 * 768 + 2304 + 768 + 3072 + 768) + 2 * 768)),
        ("vpt", 12 * 10 * 768),
        ("vpt_shallow", 10 * 768),
        ("layernorm", 2 * 768 * (12 * 2 + 2)),
        ("bitfit", 12 * (2 * 768 + 2304 + 768 + 3072 + 768) + 2 * 768),
        # the whole tower without its projection
        ("full", 86_192_640 - 768 * 512),
        ("partial", 7_087_872 + 2 * 768),
        ("random_mask", 100 * 768),
    ],
)
def test_numbers_of_parameters_at_vit_b_16(name: str, count: int) -> None:
    methods = METHODS | {
        "lora": LoRA(rank=4),
        "vpt": VPT(),
        "vpt_shallow": VPT(deep=False),
        "random_mask": RandomMask(),
    }
    classes = 100
    with torch.device("meta"):
        net = OpenClipTower(224, 16, 768, 12, 12, 4.0, output_dim=512)
    got = methods[name].apply(net, classes).count()
    assert abs(got - count) <= (24 if name == "random_mask" else 0)  # a rounding in each of 48 matrices


@pytest.mark.parametrize(
    ("method", "count"),
    [
        (SSF(outside_blocks=False), 2 * 12 * (2 * 768 + 2304 + 768 + 3072 + 768)),
        (LayerNorm(outside_blocks=False), 2 * 768 * 12 * 2),
        (BitFit(outside_blocks=False), 12 * (2 * 768 + 2304 + 768 + 3072 + 768)),
        (Full(outside_blocks=False), 12 * 7_087_872),
    ],
)
def test_what_lies_outside_the_blocks_can_be_left_out(method: TowerMethod, count: int) -> None:
    with torch.device("meta"):
        net = OpenClipTower(224, 16, 768, 12, 12, 4.0, output_dim=512)
    assert method.apply(net, 100).count() == count


def test_partial_trains_the_last_blocks_and_the_final_norm() -> None:
    names = {name for name, _ in Partial(last=1).apply(tower("open_clip"), CLASSES).describe()}
    assert {name.split(".")[0] for name in names} == {"transformer", "ln_post"}
    assert all(name.startswith(("transformer.resblocks.1.", "ln_post.")) for name in names)
    with pytest.raises(
        InputError, match="`last` must be at most 2, the number of blocks or stages of the VisionTransformer, got 3"
    ):
        Partial(last=3).apply(tower("timm"), CLASSES)


def test_full_trains_the_projection_only_if_asked() -> None:
    assert "proj" not in Full().apply(tower("open_clip"), CLASSES).named_parameters()
    assert "proj" in Full(projection=True).apply(tower("open_clip"), CLASSES).named_parameters()


# -- formulas ----------------------------------------------------------------------------------------------------------

Array = NDArray[np.float64]


def as_arrays(net: nn.Module) -> dict[str, Array]:
    return {key: value.detach().numpy() for key, value in net.state_dict().items()}


def norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    rows = []
    for row in x:
        centred = row - row.mean()
        rows.append(centred / np.sqrt((centred**2).mean() + eps) * weight + bias)
    return np.stack(rows)


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(x: Array, w: dict[str, Array], heads: int = 2) -> Array:
    """Multi-head attention of one image, (T, d), by heads and queries."""
    d = x.shape[1]
    q, k, v = (x @ w[part].T + w[f"{part}_bias"] for part in "qkv")
    out = np.zeros_like(x)
    size = d // heads
    for head in range(heads):
        cut = slice(head * size, (head + 1) * size)
        for t in range(len(x)):
            scores = np.array([q[t, cut] @ k[s, cut] / math.sqrt(size) for s in range(len(x))])
            shares = np.exp(scores - scores.max())
            out[t, cut] = (shares / shares.sum()) @ v[:, cut]
    return out @ w["out"].T + w["out_bias"]


def attention_and_mlp(x: Array, w: dict[str, Array], eps: float) -> tuple[Array, Array]:
    """The residual stream after attention, and the output of the MLP; their sum is that of the block."""
    h = x + attention(norm(x, w["norm1"], w["norm1_bias"], eps), w)
    hidden = gelu(norm(h, w["norm2"], w["norm2_bias"], eps) @ w["fc1"].T + w["fc1_bias"])
    return h, hidden @ w["fc2"].T + w["fc2_bias"]


def parts(state: dict[str, Array], kind: str) -> dict[str, Array]:
    """The weights of the first block under common names."""
    prefix = "transformer.resblocks.0." if kind == "open_clip" else "blocks.0."
    in_block = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    names = (
        ("ln_1", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        if kind == "open_clip"
        else ("norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    )
    first, qkv, qkv_bias, out, second, up, down = names
    q, k, v = np.split(in_block[qkv], 3)
    q_bias, k_bias, v_bias = np.split(in_block[qkv_bias], 3)
    named = {"q": q, "k": k, "v": v, "q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias}
    for ours, theirs in {"norm1": first, "out": out, "norm2": second, "fc1": up, "fc2": down}.items():
        named[ours], named[f"{ours}_bias"] = in_block[f"{theirs}.weight"], in_block[f"{theirs}.bias"]
    return named | in_block


def block_input() -> Array:
    return np.random.default_rng(3).normal(size=(5, 32))


def run_block(net: nn.Module, kind: str, x: Array) -> Array:
    block = net.transformer.resblocks[0] if kind == "open_clip" else net.blocks[0]
    with torch.no_grad():
        return block(torch.from_numpy(x)[None])[0].numpy()


def eps_of(kind: str) -> float:
    return 1e-5 if kind == "open_clip" else 1e-6


@both
def test_adaptformer_computes_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input()
    tuned = METHODS["adaptformer"].apply(net, CLASSES)
    train_steps(tuned)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the scale too
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    h, mlp = attention_and_mlp(x, w, eps)
    added = {key.removeprefix("adaptformer."): value for key, value in w.items() if key.startswith("adaptformer.")}
    inner = norm(h, added["norm.weight"], added["norm.bias"], 1e-5) @ added["down.weight"].T + added["down.bias"]
    side = added["scale"] * (np.maximum(inner, 0) @ added["up.weight"].T + added["up.bias"])
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp + side, rtol=0, atol=1e-10)
    assert np.abs(side).max() > 1e-3, "the branch must contribute for this test to mean anything"
    assert set(added) == {"norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias", "scale"}


@both
def test_adapter_computes_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input()
    train_steps(METHODS["adapter"].apply(net, CLASSES))
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    h, mlp = attention_and_mlp(x, w, eps)
    inner = norm(mlp, w["adapter.norm.weight"], w["adapter.norm.bias"], 1e-5) @ w["adapter.down.weight"].T
    side = np.maximum(inner + w["adapter.down.bias"], 0) @ w["adapter.up.weight"].T + w["adapter.up.bias"]
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp + side, rtol=0, atol=1e-10)
    assert np.abs(side).max() > 1e-3


@both
def test_lora_computes_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input()
    tuned = LoRA(rank=3).apply(net, CLASSES)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.normal_(0, 0.5)
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    base = run_block(tower(kind), kind, x)
    for part in ("q", "v"):
        up, down = (w[f"lora.attention_in.{part}_{end}"] for end in ("up", "down"))
        change = np.zeros_like(w[part])
        for i in range(32):
            for j in range(32):
                change[i, j] = sum(up[i, r] * down[r, j] for r in range(3)) / 3
        w[part] = w[part] + change
    h, mlp = attention_and_mlp(x, w, eps)
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp, rtol=0, atol=1e-10)
    assert np.abs(h + mlp - base).max() > 1e-3


@both
def test_ssf_scales_and_shifts_the_output_of_every_layer(kind: str) -> None:
    net, x = tower(kind), block_input()
    tuned = METHODS["ssf"].apply(net, CLASSES)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    w, eps = parts(as_arrays(net), kind), eps_of(kind)

    def ssf(y: Array, site: str) -> Array:
        return y * w[f"ssf.{site}.scale"] + w[f"ssf.{site}.shift"]

    first, second = ("mlp_c_fc", "mlp_c_proj") if kind == "open_clip" else ("mlp_fc1", "mlp_fc2")
    n = ssf(norm(x, w["norm1"], w["norm1_bias"], eps), "norm1")
    scale, shift = np.split(w["ssf.attention_in.scale"], 3), np.split(w["ssf.attention_in.shift"], 3)
    for part, gamma, beta in zip("qkv", scale, shift, strict=True):  # y = x W^T + b, row by row
        w[f"{part}_bias"] = w[f"{part}_bias"] * gamma + beta
        w[part] = np.stack([g * row for g, row in zip(gamma, w[part], strict=True)])
    h = x + ssf(attention(n, w), "attention_out")
    n = ssf(norm(h, w["norm2"], w["norm2_bias"], eps), "norm2")
    mlp = ssf(gelu(ssf(n @ w["fc1"].T + w["fc1_bias"], first)) @ w["fc2"].T + w["fc2_bias"], second)
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp, rtol=0, atol=1e-10)
    outer = {name.split(".")[1] for name in tuned.named_parameters() if name.startswith("ssf.")}
    assert outer == ({"ln_pre", "ln_post"} if kind == "open_clip" else {"norm"})


@both
@pytest.mark.parametrize("deep", [True, False])
def test_vpt_inserts_prompts_after_the_class_token_and_removes_them(kind: str, deep: bool) -> None:
    """By hand: every block reads [class, prompts, patches], and nothing after the blocks reads a prompt."""
    net = tower(kind)
    tuned = VPT(tokens=3, deep=deep).apply(net, CLASSES)
    prompts = [value.detach() for value in tuned.named_parameters().values()]
    assert [tuple(value.shape) for value in prompts] == [(3, 32)] * (2 if deep else 1)
    assert all(value.abs().max() <= math.sqrt(6 / (3 * 64 + 32)) for value in prompts)
    plain = tower(kind)
    blocks = plain.transformer.resblocks if kind == "open_clip" else plain.blocks
    x = torch.from_numpy(np.random.default_rng(3).normal(size=(2, 5, 32)))
    with torch.no_grad():
        got = net.transformer(x) if kind == "open_clip" else net.blocks(x)
        class_token, patches, rest = x[:, :1], x[:, 1:], prompts[0].expand(2, -1, -1)
        for number, block in enumerate(blocks):
            if deep:
                rest = prompts[number].expand(2, -1, -1)
            y = block(torch.cat([class_token, rest, patches], dim=1))
            class_token, rest, patches = y[:, :1], y[:, 1:4], y[:, 4:]
    torch.testing.assert_close(got, torch.cat([class_token, patches], dim=1), rtol=0, atol=1e-12)


@both
def test_random_mask_trains_a_fixed_share_of_every_matrix(kind: str) -> None:
    net, x = tower(kind), block_input()
    torch.manual_seed(4)
    tuned = RandomMask(share=0.1).apply(net, CLASSES)
    train_steps(tuned, steps=5)
    values = {key: value.detach() for key, value in tuned.values().items()}
    sites = [key.removesuffix(".places") for key in values if key.endswith(".places")]
    assert len(sites) == 8
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    qkv = np.concatenate([w["q"], w["k"], w["v"]])
    matrices = [qkv, w["out"], w["fc1"], w["fc2"]]
    base = run_block(tower(kind), kind, x)
    for site, matrix in zip(sites[:4], matrices, strict=True):  # those of the first block
        places, trained = values[f"{site}.places"], values[f"{site}.values"][0]
        assert len(places.unique()) == len(places) == round(0.1 * matrix.size)
        for place, value in zip(places.tolist(), trained.tolist(), strict=True):
            matrix[place // matrix.shape[1], place % matrix.shape[1]] = value
    w["q"], w["k"], w["v"] = np.split(qkv, 3)
    h, mlp = attention_and_mlp(x, w, eps)
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp, rtol=0, atol=1e-10)
    assert np.abs(h + mlp - base).max() > 1e-3


# -- layer-wise learning rates -----------------------------------------------------------------------------------------


@both
def test_learning_rates_decay_towards_the_input(kind: str) -> None:
    tuned = Full(lr_decay=0.5, projection=True).apply(tower(kind), CLASSES)
    scales = lr_scales(tuned, 0.5)
    blocks = "transformer.resblocks" if kind == "open_clip" else "blocks"
    wanted = {f"{blocks}.1.": 0.5, f"{blocks}.0.": 0.25}
    wanted |= (
        {"ln_post.": 1.0, "proj": 1.0, "conv1.": 0.125, "class_embedding": 0.125, "positional_embedding": 0.125}
        | {"ln_pre.": 0.125}
        if kind == "open_clip"
        else {"norm.": 1.0, "patch_embed.": 0.125, "cls_token": 0.125, "pos_embed": 0.125}
    )
    for name, scale in scales.items():
        assert scale == next(value for start, value in wanted.items() if name.startswith(start)), name
    groups = lr_groups(tuned, 0.5)
    assert [scale for scale, _ in groups] == [0.125, 0.25, 0.5, 1.0]
    assert sum(len(group) for _, group in groups) == len(tuned.parameters())
    assert [scale for scale, _ in lr_groups(tuned, 1.0)] == [1.0]
