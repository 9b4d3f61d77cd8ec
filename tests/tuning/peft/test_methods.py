"""What every way of tuning a tower must do, on open_clip's and on timm's; and each one's formula, in NumPy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from open_clip.transformer import VisionTransformer as OpenClipTower
from timm.models.vision_transformer import VisionTransformer as TimmTower
from torch import Tensor, nn

from imbalance_vlm import InputError, create_encoder
from imbalance_vlm.tuning.peft.adapter import Adapter
from imbalance_vlm.tuning.peft.adaptformer import AdaptFormer
from imbalance_vlm.tuning.peft.base import Method, Tuned, adaptive_width
from imbalance_vlm.tuning.peft.bitfit import BitFit
from imbalance_vlm.tuning.peft.full import Full, lr_groups, lr_scales
from imbalance_vlm.tuning.peft.layernorm import LayerNorm
from imbalance_vlm.tuning.peft.lora import LoRA
from imbalance_vlm.tuning.peft.partial import Partial
from imbalance_vlm.tuning.peft.random_mask import RandomMask
from imbalance_vlm.tuning.peft.ssf import SSF
from imbalance_vlm.tuning.peft.vpt import VPT

CLASSES = 20
METHODS: dict[str, Method] = {
    "adaptformer": AdaptFormer(width=16),
    "adapter": Adapter(width=16),
    "lora": LoRA(rank=3),
    "ssf": SSF(),
    "vpt": VPT(tokens=3),
    "vpt_shallow": VPT(tokens=3, deep=False),
    "bitfit": BitFit(),
    "layernorm": LayerNorm(),
    "random_mask": RandomMask(share=0.1),
    "partial": Partial(last=1),
    "full": Full(),
}
IN_PLACE = ("bitfit", "layernorm", "partial", "full")
MERGED = ("lora", "ssf", "random_mask", *IN_PLACE)


def tower(kind: str, seed: int = 0, **settings: object) -> nn.Module:
    """A tiny image tower in float64 whose norms and biases are not those of a fresh one."""
    torch.manual_seed(seed)
    if kind == "open_clip":
        net: nn.Module = OpenClipTower(16, 8, 32, 2, 2, 4.0, output_dim=16, **settings)
    else:
        net = TimmTower(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, **settings)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return net.double().eval()


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def features(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(pixels())


def trained(tuned: Tuned, steps: int = 3) -> None:
    """A few steps that move everything: SGD with momentum and weight decay."""
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.02, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned.root(pixels()).square().sum().backward()
        optimizer.step()


both = pytest.mark.parametrize("kind", ["open_clip", "timm"])
every = pytest.mark.parametrize("name", METHODS)


# -- contracts ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("vpt")])
def test_starts_exactly_as_the_untouched_tower(kind: str, name: str) -> None:
    net = tower(kind)
    before = features(net)
    METHODS[name].apply(net, CLASSES)
    assert torch.equal(features(net), before)


@both
@every
def test_training_moves_what_is_listed_and_nothing_else(kind: str, name: str) -> None:
    net = tower(kind)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    output = features(net)
    tuned = METHODS[name].apply(net, CLASSES)
    start = {key: value.detach().clone() for key, value in tuned.named_parameters().items()}
    trained(tuned)
    for key, parameter in net.named_parameters():
        assert parameter.requires_grad == (key in start)
        if key in start:
            assert not torch.equal(parameter, start[key]), f"{key} did not move"
        else:
            assert parameter.grad is None, f"{key} got a gradient"
            assert torch.equal(parameter, before[key]), f"{key} moved"
    assert not torch.allclose(features(net), output)


@both
@every
def test_the_tower_keeps_its_names_and_gets_everything_back(kind: str, name: str) -> None:
    """A study runs many methods on one encoder."""
    net = tower(kind)
    net.requires_grad_(True)
    own = list(net.state_dict())
    before, state = features(net), copy.deepcopy(net.state_dict())
    tuned = METHODS[name].apply(net, CLASSES)
    assert [key for key in net.state_dict() if key in set(own)] == own
    trained(tuned)
    tuned.remove()
    tuned.remove()  # a second time does nothing
    assert list(net.state_dict()) == own
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(features(net), before)
    with METHODS[name].apply(net, CLASSES) as again:
        trained(again)
    assert torch.equal(features(net), before)


@both
@every
def test_the_base_is_at_hand_while_tuning(kind: str, name: str) -> None:
    net = tower(kind)
    before = features(net)
    tuned = METHODS[name].apply(net, CLASSES)
    trained(tuned)
    after = features(net)
    net.train()
    with tuned.base():
        assert torch.equal(features(net), before)
    assert net.training
    net.eval()
    assert torch.equal(features(net), after)


@both
@every
def test_only_what_was_trained_is_the_state_and_it_comes_back(kind: str, name: str) -> None:
    net, other = tower(kind), tower(kind)
    torch.manual_seed(1)
    tuned = METHODS[name].apply(net, CLASSES)
    trained(tuned)
    state = tuned.state()
    torch.manual_seed(2)  # other prompts, other places
    copied = METHODS[name].apply(other, CLASSES)
    copied.load(state)
    assert torch.equal(features(other), features(net))
    assert set(tuned.named_parameters()) <= set(state)
    if name not in IN_PLACE:
        assert not set(state) & set(tower(kind).state_dict())


@both
@every
def test_survives_deepcopy_and_autocast(kind: str, name: str) -> None:
    net = tower(kind)
    tuned = METHODS[name].apply(net, CLASSES)
    trained(tuned)
    wanted = features(net)
    twin = copy.deepcopy(net)
    tuned.remove()
    assert torch.equal(features(twin), wanted), "a copy (a weight average, say) must not lean on the original"
    small = tower(kind).float()
    tuned = METHODS[name].apply(small, CLASSES)
    with torch.autocast("cpu", torch.bfloat16):
        output = small(pixels().float())
    output.float().square().sum().backward()
    for key, parameter in tuned.named_parameters().items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.slow
@both
@pytest.mark.parametrize("name", ["adaptformer", "lora", "vpt"])  # the three ways of getting in
def test_compiles_in_one_piece(kind: str, name: str) -> None:
    net = tower(kind)
    trained(METHODS[name].apply(net, CLASSES))
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(pixels()), net(pixels()))


@both
@pytest.mark.parametrize("name", MERGED)
def test_merged_weights_make_a_plain_tower_that_does_the_same(kind: str, name: str) -> None:
    net, plain = tower(kind), tower(kind, seed=9)
    tuned = METHODS[name].apply(net, CLASSES)
    trained(tuned)
    plain.load_state_dict(tuned.merged_state())
    torch.testing.assert_close(features(plain), features(net), rtol=0, atol=1e-6)
    assert not torch.allclose(features(plain), features(tower(kind)))


@both
@pytest.mark.parametrize("name", ["adaptformer", "adapter", "vpt"])
def test_what_adds_layers_is_not_merged(kind: str, name: str) -> None:
    with pytest.raises(InputError, match="adds layers to the tower"):
        METHODS[name].apply(tower(kind), CLASSES).merged_state()


@both
@pytest.mark.parametrize("name", ["lora", "ssf", "random_mask"])
def test_a_failing_pass_leaves_no_weights_behind(kind: str, name: str) -> None:
    net = tower(kind)
    METHODS[name].apply(net, CLASSES)
    wrong = torch.zeros(1, 5, 31, dtype=torch.float64)
    called = net.transformer.resblocks[0].attn if kind == "open_clip" else net.blocks[0].attn.qkv
    with pytest.raises((RuntimeError, AssertionError)):
        called(*[wrong] * (3 if kind == "open_clip" else 1))
    assert not [value for module in net.modules() for value in vars(module).values() if isinstance(value, Tensor)]


def test_one_tuning_at_a_time() -> None:
    net = tower("timm")
    LoRA().apply(net, CLASSES)
    with pytest.raises(InputError, match=r"under tuning by 'lora' already; call remove\(\)"):
        SSF().apply(net, CLASSES)


def test_the_text_tower_is_frozen_along_with_the_rest() -> None:
    model = nn.ModuleDict({"visual": tower("open_clip"), "text": nn.Linear(2, 2)})
    tuned = Full().apply(model, CLASSES)
    assert not any(p.requires_grad for p in model["text"].parameters())
    assert tuned.root is model["visual"]
    tuned.remove()
    assert all(p.requires_grad for p in model["text"].parameters())


@both
def test_gradients_with_checkpointing_are_those_without(kind: str) -> None:
    for name in ("adaptformer", "lora", "vpt"):
        grads = []
        for checkpointing in (False, True):
            net = tower(kind).train()
            torch.manual_seed(3)
            tuned = METHODS[name].apply(net, CLASSES)
            net.set_grad_checkpointing(checkpointing)
            net(pixels()).square().sum().backward()
            grads.append([parameter.grad for parameter in tuned.parameters()])
        for plain, again in zip(*grads, strict=True):
            torch.testing.assert_close(again, plain)


# -- what is trained ---------------------------------------------------------------------------------------------------


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


def test_lists_name_and_shape_of_what_is_trained() -> None:
    tuned = LoRA(rank=3).apply(tower("open_clip"), CLASSES)
    assert tuned.describe()[:2] == [
        ("transformer.resblocks.0.lora.attention_in.q_down", (3, 32)),
        ("transformer.resblocks.0.lora.attention_in.q_up", (32, 3)),
    ]
    assert len(tuned.describe()) == 8
    names = [name for name, _ in BitFit().apply(tower("timm"), CLASSES).describe()]
    assert all(name.endswith("bias") for name in names)
    assert "blocks.1.attn.qkv.bias" in names
    norms = {name for name, _ in LayerNorm().apply(tower("open_clip"), CLASSES).describe()}
    assert {"ln_pre.weight", "transformer.resblocks.1.ln_2.bias", "ln_post.bias"} <= norms
    assert len(norms) == 12


def test_partial_takes_the_last_blocks_and_the_final_norm() -> None:
    names = {name for name, _ in Partial(last=1).apply(tower("open_clip"), CLASSES).describe()}
    assert {name.split(".")[0] for name in names} == {"transformer", "ln_post"}
    assert all(name.startswith(("transformer.resblocks.1.", "ln_post.")) for name in names)
    with pytest.raises(
        InputError, match="`last` must be at most 2, the blocks or stages of the VisionTransformer, got 3"
    ):
        Partial(last=3).apply(tower("timm"), CLASSES)


def test_full_leaves_the_projection_unless_asked() -> None:
    assert "proj" not in Full().apply(tower("open_clip"), CLASSES).named_parameters()
    assert "proj" in Full(projection=True).apply(tower("open_clip"), CLASSES).named_parameters()


@pytest.mark.parametrize(
    ("classes", "layers", "width"),
    [(100, 12, 4), (365, 12, 8), (1000, 12, 32), (8142, 12, 256), (10, 12, 1), (48, 12, 2)],
)
def test_the_width_follows_the_number_of_classes(classes: int, layers: int, width: int) -> None:
    assert adaptive_width(classes, layers) == width
    assert adaptive_width(classes, layers) == 2 ** max(0, math.floor(math.log2(classes / (2 * layers))))


@pytest.mark.parametrize("name", ["adaptformer", "lora", "vpt", "random_mask"])
def test_the_start_follows_the_seed_alone(name: str) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        net = tower("timm")
        torch.manual_seed(seed)
        return METHODS[name].apply(net, CLASSES).state()

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(torch.equal(value, other[key]) for key, value in first.items())


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


def parts(state: dict[str, Array], kind: str, eps: float = 0.0) -> dict[str, Array]:
    """The weights of the first block under names of our own."""
    prefix = "transformer.resblocks.0." if kind == "open_clip" else "blocks.0."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    names = (
        ("ln_1", "attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
        if kind == "open_clip"
        else ("norm1", "attn.qkv.weight", "attn.qkv.bias", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    )
    first, qkv, qkv_bias, out, second, up, down = names
    q, k, v = np.split(own[qkv], 3)
    q_bias, k_bias, v_bias = np.split(own[qkv_bias], 3)
    named = {"q": q, "k": k, "v": v, "q_bias": q_bias, "k_bias": k_bias, "v_bias": v_bias}
    for ours, theirs in {"norm1": first, "out": out, "norm2": second, "fc1": up, "fc2": down}.items():
        named[ours], named[f"{ours}_bias"] = own[f"{theirs}.weight"], own[f"{theirs}.bias"]
    return named | own


def block_input(kind: str) -> Array:
    return np.random.default_rng(3).normal(size=(5, 32))


def run_block(net: nn.Module, kind: str, x: Array) -> Array:
    block = net.transformer.resblocks[0] if kind == "open_clip" else net.blocks[0]
    with torch.no_grad():
        return block(torch.from_numpy(x)[None])[0].numpy()


def eps_of(kind: str) -> float:
    return 1e-5 if kind == "open_clip" else 1e-6


@both
def test_adaptformer_is_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input(kind)
    tuned = METHODS["adaptformer"].apply(net, CLASSES)
    trained(tuned)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # the scale too
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    h = x + attention(norm(x, w["norm1"], w["norm1_bias"], eps), w)
    mlp = gelu(norm(h, w["norm2"], w["norm2_bias"], eps) @ w["fc1"].T + w["fc1_bias"]) @ w["fc2"].T + w["fc2_bias"]
    own = {key.removeprefix("adaptformer."): value for key, value in w.items() if key.startswith("adaptformer.")}
    inner = norm(h, own["norm.weight"], own["norm.bias"], 1e-5) @ own["down.weight"].T + own["down.bias"]
    side = own["scale"] * (np.maximum(inner, 0) @ own["up.weight"].T + own["up.bias"])
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp + side, rtol=0, atol=1e-10)
    assert np.abs(side).max() > 1e-3, "the branch must have a say for this test to mean anything"
    assert set(own) == {"norm.weight", "norm.bias", "down.weight", "down.bias", "up.weight", "up.bias", "scale"}


@both
def test_adapter_is_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input(kind)
    trained(METHODS["adapter"].apply(net, CLASSES))
    w, eps = parts(as_arrays(net), kind), eps_of(kind)
    h = x + attention(norm(x, w["norm1"], w["norm1_bias"], eps), w)
    mlp = gelu(norm(h, w["norm2"], w["norm2_bias"], eps) @ w["fc1"].T + w["fc1_bias"]) @ w["fc2"].T + w["fc2_bias"]
    inner = norm(mlp, w["adapter.norm.weight"], w["adapter.norm.bias"], 1e-5) @ w["adapter.down.weight"].T
    side = np.maximum(inner + w["adapter.down.bias"], 0) @ w["adapter.up.weight"].T + w["adapter.up.bias"]
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp + side, rtol=0, atol=1e-10)
    assert np.abs(side).max() > 1e-3


@both
def test_lora_is_its_formula(kind: str) -> None:
    net, x = tower(kind), block_input(kind)
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
    h = x + attention(norm(x, w["norm1"], w["norm1_bias"], eps), w)
    mlp = gelu(norm(h, w["norm2"], w["norm2_bias"], eps) @ w["fc1"].T + w["fc1_bias"]) @ w["fc2"].T + w["fc2_bias"]
    np.testing.assert_allclose(run_block(net, kind, x), h + mlp, rtol=0, atol=1e-10)
    assert np.abs(h + mlp - base).max() > 1e-3


@both
def test_ssf_scales_and_shifts_what_every_layer_gives(kind: str) -> None:
    net, x = tower(kind), block_input(kind)
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
def test_vpt_puts_prompts_behind_the_class_token_and_takes_them_out(kind: str, deep: bool) -> None:
    """By hand: every block sees [class, prompts, patches], and nothing after the blocks sees a prompt."""
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
        own, patches, rest = x[:, :1], x[:, 1:], prompts[0].expand(2, -1, -1)
        for number, block in enumerate(blocks):
            if deep:
                rest = prompts[number].expand(2, -1, -1)
            y = block(torch.cat([own, rest, patches], dim=1))
            own, rest, patches = y[:, :1], y[:, 1:4], y[:, 4:]
    torch.testing.assert_close(got, torch.cat([own, patches], dim=1), rtol=0, atol=1e-12)


@both
def test_random_mask_trains_a_fixed_share_of_every_matrix(kind: str) -> None:
    net = tower(kind)
    torch.manual_seed(4)
    tuned = RandomMask(share=0.1).apply(net, CLASSES)
    trained(tuned, steps=5)
    merged, base = tuned.merged_state(), tower(kind).state_dict()
    matrices = [key for key, value in base.items() if value.ndim == 2 and "blocks." in key]
    assert len(matrices) == 8
    for key in matrices:
        moved = (merged[key] != base[key]).double().mean().item()
        assert moved == pytest.approx(0.1, abs=2e-3), key
    assert all(torch.equal(merged[key], base[key]) for key in base if key not in matrices)


# -- full: layer-wise learning rates, averaging ------------------------------------------------------------------------


@both
def test_learning_rates_fall_towards_the_input(kind: str) -> None:
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


# -- other towers ------------------------------------------------------------------------------------------------------


def conv(name: str) -> nn.Module:
    torch.manual_seed(0)
    small = {"resnet10t": {}, "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}}
    return timm.create_model(name, num_classes=0, **small[name]).eval()


@pytest.mark.parametrize("name", ["adaptformer", "adapter", "lora", "ssf", "vpt", "random_mask"])
@pytest.mark.parametrize("net", ["resnet10t", "convnext_atto"])
def test_nets_without_the_parts_are_refused_by_name_and_left_alone(name: str, net: str) -> None:
    module = conv(net)
    kind = {"resnet10t": "ResNet", "convnext_atto": "ConvNeXt"}[net]
    with pytest.raises(InputError, match=rf"needs a vision transformer .* {kind} has no transformer blocks") as error:
        METHODS[name].apply(module, CLASSES)
    assert "'full' and 'partial' tune any net" in str(error.value)
    assert all(parameter.requires_grad for parameter in module.parameters())
    Full().apply(module, CLASSES)  # it is not under tuning


def test_blocks_without_a_part_are_refused_with_its_name() -> None:
    beit = timm.create_model("beit_base_patch16_224", num_classes=0, embed_dim=32, depth=1, num_heads=2)
    with pytest.raises(InputError, match=r"Beit has blocks \(Block\) without ls2"):
        AdaptFormer().apply(beit, CLASSES)
    assert all(parameter.requires_grad for parameter in beit.parameters())


def test_layernorm_needs_layer_norms() -> None:
    with pytest.raises(InputError, match="'layernorm' needs a tower with layer norms, ResNet has none"):
        LayerNorm().apply(conv("resnet10t"), CLASSES)
    with pytest.raises(InputError, match="blocks or stages"):
        Full(lr_decay=0.5).apply(nn.Linear(2, 2), CLASSES)


@pytest.mark.parametrize("net", ["resnet10t", "convnext_atto"])
def test_conv_nets_are_tuned_in_full_or_by_their_last_stages(net: str) -> None:
    module, image = conv(net), torch.randn(4, 3, 64, 64)
    before = copy.deepcopy(module.state_dict())
    for method in (Full(lr_decay=0.5), Partial(last=2)):
        tuned = method.apply(module, CLASSES)
        tuned.train()
        optimizer = torch.optim.SGD(tuned.parameters(), lr=0.01, weight_decay=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(image).square().sum().backward()
            optimizer.step()
        assert not [name for name, parameter in tuned.named_parameters().items() if parameter.grad is None]
        tuned.train(False)
        wanted, state = module(image), tuned.state()
        changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
        assert changed <= set(state), "statistics of frozen norms stay"
        if isinstance(method, Partial):
            stages = {"resnet10t": ("layer3.", "layer4."), "convnext_atto": ("stages.2.", "stages.3.", "head.")}[net]
            assert {name for name in changed if not name.startswith(stages)} == set()
        tuned.remove()
        assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
        tuned = method.apply(module, CLASSES)
        tuned.load(state)
        torch.testing.assert_close(module(image), wanted)
        tuned.remove()


def test_layer_scale_and_stochastic_depth_come_before_the_branch() -> None:
    for net in (tower("timm", init_values=0.1), tower("open_clip", ls_init_value=0.1)):
        before = features(net)
        tuned = AdaptFormer().apply(net, CLASSES)
        assert torch.equal(features(net), before)
        trained(tuned)
        assert not torch.allclose(features(net), before)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_token": False, "global_pool": "avg"},
        {"reg_tokens": 2},
        {"final_norm": False},
        {"qkv_bias": False},
        {"pre_norm": True, "qk_norm": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_variants_of_a_vision_transformer(settings: dict[str, object]) -> None:
    for name, method in METHODS.items():
        net = tower("timm", **settings)
        before = features(net)
        with method.apply(net, CLASSES) as tuned:
            assert torch.equal(features(net), before) != name.startswith("vpt")
            trained(tuned)
            assert not torch.allclose(features(net), before)
            tokens = net.forward_features(pixels())
            assert tokens.shape[1] == net.num_prefix_tokens + 4
        assert torch.equal(features(net), before)


@every
def test_every_kind_of_feature_of_an_encoder(tiny_clip: str, name: str) -> None:
    encoder = create_encoder(tiny_clip)
    images = pixels().float()
    for kind, shape in {"embedding": (3, 16), "class_token": (3, 32), "tokens": (3, 5, 32)}.items():
        with torch.no_grad():
            before = encoder.image_features(images, kind)
        with METHODS[name].apply(encoder.module, CLASSES) as tuned:
            got = encoder.image_features(images, kind)
            assert got.shape == shape, "a prompt is no image token"
            got.square().sum().backward()
            assert not [key for key, value in tuned.named_parameters().items() if value.grad is None]
            reached = [parameter for parameter in encoder.module.parameters() if parameter.grad is not None]
            assert len(reached) == len(tuned.parameters()), "the text tower stays out of it"
        with torch.no_grad():
            assert torch.equal(encoder.image_features(images, kind), before)


def test_a_shift_without_a_bias_to_take_it_is_not_merged() -> None:
    tuned = METHODS["ssf"].apply(tower("timm", qkv_bias=False), CLASSES)
    with pytest.raises(InputError, match="the tower has no blocks.0.attn.qkv.bias"):
        tuned.merged_state()


def test_a_tower_from_timm_inside_open_clip_is_found() -> None:
    outer = nn.ModuleDict({"visual": nn.ModuleDict({"trunk": tower("timm")})})
    tuned = LoRA().apply(outer, CLASSES)
    assert isinstance(tuned.root, TimmTower)


def test_a_state_of_another_setting_is_refused() -> None:
    state = LoRA(rank=2).apply(tower("timm"), CLASSES).state()
    tuned = LoRA(rank=3).apply(tower("timm"), CLASSES)
    with pytest.raises(InputError, match=r"expected \(3, 32\) for blocks.0.lora.attention_in.q_down, got \(2, 32\)"):
        tuned.load(state)
    with pytest.raises(InputError, match="expected nothing for .*got"):
        SSF().apply(tower("timm"), CLASSES).load(state)
