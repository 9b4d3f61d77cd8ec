"""Prompted text features against open_clip's own text encoding with the context put in by hooks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import open_clip
import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from imbalance_vlm.encoders.class_chunks import pack, two_pass
from imbalance_vlm.encoders.linear import ONEDNN
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.prompted_text import SAVINGS, Position, PromptedText
from imbalance_vlm.encoders.text_tower import TextTower
from imbalance_vlm.errors import InputError

VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 3}
NAMES = (
    "cat",
    "sports_car",
    "cat",  # a name twice
    "red tailed black cockatoo",
    "a " * 19 + "dog",  # 20 tokens
    "mr.",  # its full stop joins the prompt's
    "café!",
    "arrow down left",
)
TOKENIZER = SimpleTokenizer(context_length=40)
BIDIRECTIONAL = {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "vocab_size": 100}


class WordTokenizer:
    """Like SigLIP's: no start token, and the end token is the padding."""

    def __call__(self, texts: Sequence[str], context_length: int = 40) -> Tensor:
        rows = torch.ones(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            words = [2 + sum(map(ord, word)) % 98 for word in text.replace(".", " .").split()]
            row[: len(words)] = torch.tensor(words, dtype=torch.long)[:context_length]
        return rows


def encoder(kind: str = "clip", dtype: torch.dtype = torch.float64, precision: str = "fp32", **text: Any) -> Any:
    """An encoder around a tiny open_clip model of its own."""
    tokenizer = WordTokenizer() if kind == "siglip" else TOKENIZER
    net = copy.deepcopy(model(kind, dtype, **text))
    return OpenClipEncoder(net, cast(Any, None), tokenizer, kind, "random", None, "", precision)


@functools.cache
def model(kind: str, dtype: torch.dtype, **text: Any) -> nn.Module:
    """Weights large enough for every token to matter."""
    makers: dict[str, Callable[[], nn.Module]] = {
        "clip": lambda: open_clip.CLIP(16, VISION, {**TEXT, **text}),
        "quick": lambda: open_clip.CLIP(16, VISION, {**TEXT, **text}, quick_gelu=True),
        "eva": lambda: open_clip.CustomTextCLIP(16, VISION, {**TEXT, **text}),
        "siglip": lambda: open_clip.CustomTextCLIP(16, VISION, {**TEXT, **BIDIRECTIONAL, **text}),
        "coca": lambda: CoCa(
            16,
            {"context_length": 40, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
            {**TEXT, "embed_cls": True, "output_tokens": True, **text},
            {**VISION, "output_tokens": True, "attentional_pool": True, "attn_pooler_heads": 2},
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = makers[kind]().to(dtype)
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def token_rows(encoder: Any, position: Position, n_ctx: int) -> tuple[Tensor, list[list[int]]]:
    """Ids of all prompts, and the places of their context tokens, from the tokenizer's words."""
    tokenizer, rows, places = encoder.tokenizer, [], []
    for name in NAMES:
        name = name.replace("_", " ")
        if isinstance(tokenizer, WordTokenizer):
            start, end, filler = [], [1], 5
            both, alone = ([int(i) for i in tokenizer([text])[0] if i != 1] for text in (name + ".", name))
        else:
            start, end, filler = [tokenizer.sot_token_id], [tokenizer.eot_token_id], tokenizer.encode("x")[0]
            both, alone = tokenizer.encode(name + "."), tokenizer.encode(name)
        name_part, stop = both[: len(alone)], both[len(alone) :]
        half = n_ctx // 2
        pieces = {
            "end": [[None] * n_ctx, name_part, stop],
            "middle": [[None] * half, name_part, [None] * (n_ctx - half), stop],
            "front": [name_part, [None] * n_ctx, stop],
        }[position]
        body = [*start, *(token for piece in pieces for token in piece), *end]
        places.append([number for number, token in enumerate(body) if token is None])
        row = [filler if token is None else token for token in body]
        rows.append(row + [1 if isinstance(tokenizer, WordTokenizer) else 0] * (40 - len(row)))
    return torch.tensor(rows), places


@contextmanager
def inserted(module: nn.Module, places: list[list[int]], tokens: Tensor, before: bool) -> Iterator[None]:
    """Replace what comes out of a module, or enters it, at each class's places: (C, n, w)."""

    def changed(x: Tensor) -> Tensor:
        rows = []
        for number, row in enumerate(x):
            parts = list(row)
            for place, token in zip(places[number], tokens[number], strict=False):
                parts[place] = token.to(x.dtype)
            rows.append(torch.stack(parts))
        return torch.stack(rows)

    if before:
        handle = module.register_forward_pre_hook(lambda _, inputs: (changed(inputs[0]), *inputs[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: changed(output))
    try:
        yield
    finally:
        handle.remove()


def oracle(encoder: Any, position: Position, context: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """open_clip's `encode_text` with the context in place of the placeholders."""
    home = getattr(encoder.module, "text", encoder.module)
    ids, places = token_rows(encoder, position, context.shape[-2])
    with ExitStack() as hooks:
        per_class = context if context.ndim == 3 else torch.stack([context] * len(NAMES))
        hooks.enter_context(inserted(home.token_embedding, places, per_class, before=False))
        for block, tokens in zip(home.transformer.resblocks[1:], deep, strict=False):
            hooks.enter_context(inserted(block, places, torch.stack([tokens] * len(NAMES)), before=True))
        return F.normalize(encoder.module.encode_text(ids), dim=-1)


def learned(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return values.requires_grad_()


def with_grads(features: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The features, and the gradients of a random linear function of them."""
    cotangent = torch.randn(features.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return [features.detach(), *torch.autograd.grad((features * cotangent.to(features)).sum(), inputs)]


def assert_same(computed: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(computed, expected, strict=True):
        assert float((ours - theirs).detach().abs().max()) < tolerance * max(1.0, float(theirs.detach().abs().max()))


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"savings": ()},
    "cut": {"savings": ["cut"]},
    "prefix": {"savings": ["prefix"]},
    "cut and prefix": {"savings": ["cut", "prefix"]},
    "one by one": {"chunk": 1},
    "three": {"chunk": 3},
    "all": {"chunk": len(NAMES)},
    "by memory": {},
    "in no memory": {"memory_gb": 1e-9},
    "plain chunks": {"savings": ["chunks"], "chunk": 3},
}


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "per class"])
@pytest.mark.parametrize("n_ctx", [1, 4, 16])
def test_the_same_as_open_clip_in_every_way(position: Position, per_class: bool, n_ctx: int) -> None:
    clip = encoder()
    context = learned(len(NAMES), n_ctx, 16) if per_class else learned(n_ctx, 16)
    expected = with_grads(oracle(clip, position, context), context)
    for settings in WAYS.values():
        text = PromptedText(clip, NAMES, position=position, **settings)
        assert_same(with_grads(text(context), context), expected, 1e-10)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("per_class", [False, True], ids=["shared", "per class"])
@pytest.mark.parametrize(("depth", "n"), [(1, 4), (2, 2)])
def test_deep_prompts_take_the_places_of_the_context(position: Position, per_class: bool, depth: int, n: int) -> None:
    clip = encoder()
    context = learned(len(NAMES), 4, 16) if per_class else learned(4, 16)
    deep = learned(depth, n, 16, seed=1)
    expected = with_grads(oracle(clip, position, context, list(deep)), context, deep)
    for settings in WAYS.values():
        text = PromptedText(clip, NAMES, position=position, **settings)
        assert_same(with_grads(text(context, deep), context, deep), expected, 1e-10)
    assert_same(
        with_grads(PromptedText(clip, NAMES, position=position)(context, list(deep)), context, deep), expected, 1e-10
    )
    shallow = PromptedText(clip, NAMES, position=position)(context).detach()
    assert float((shallow - expected[0]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("quick", {}),
        ("eva", {}),
        ("clip", {"ls_init_value": 0.5}),
        ("clip", {"proj_bias": True}),
        ("clip", {"proj_type": "none"}),
        ("clip", {"pool_type": "eos", "eos_id": 49407}),
        ("clip", {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True}),
        ("clip", {"block_type": "custom", "scale_fc": True, "ls_init_value": 0.5}),
    ],
)
def test_other_causal_towers_get_all_savings(kind: str, settings: dict[str, Any]) -> None:
    clip = encoder(kind, **settings)
    context, deep = learned(4, 16), learned(2, 2, 16, seed=1)
    expected = with_grads(oracle(clip, "end", context, list(deep)), context, deep)
    for chunk in (None, 3):
        text = PromptedText(clip, NAMES, chunk=chunk)
        assert text.savings == set(SAVINGS)
        assert_same(with_grads(text(context, deep), context, deep), expected, 1e-10)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("siglip", {}),
        ("siglip", {"pool_type": "first"}),
        ("clip", {"pool_type": "last"}),
        ("clip", {"no_causal_mask": True}),
        ("coca", {}),
    ],
)
def test_a_tower_that_sees_what_follows_gets_chunks_only(kind: str, settings: dict[str, Any]) -> None:
    clip = encoder(kind, **settings)
    context, deep = learned(4, 16), learned(2, 4, 16, seed=1)
    expected = with_grads(oracle(clip, "end", context, list(deep)), context, deep)
    for way in ({"savings": ()}, {"chunk": 1}, {"chunk": 3}, {}):
        text = PromptedText(clip, NAMES, **way)
        assert text.savings == (set() if "savings" in way else {"chunks"})
        assert_same(with_grads(text(context, deep), context, deep), expected, 1e-10)


def test_a_mask_that_lets_one_token_look_ahead_is_not_causal() -> None:
    clip = encoder()
    assert TextTower(clip.module, "clip").causal
    clip.module.attn_mask[3, 5] = 0.0
    assert not TextTower(clip.module, "clip").causal


def test_a_block_of_another_kind_is_not_taken_for_causal() -> None:
    clip = encoder()

    class Mixing(type(clip.module.transformer.resblocks[1])):  # type: ignore[misc]
        pass

    clip.module.transformer.resblocks[1].__class__ = Mixing
    assert PromptedText(clip, NAMES).savings == {"chunks"}


def test_float32_to_a_hundred_thousandth() -> None:
    clip = encoder(dtype=torch.float32)
    context = learned(4, 16, dtype=torch.float32)
    expected = with_grads(oracle(clip, "end", context), context)
    for settings in WAYS.values():
        computed = with_grads(PromptedText(clip, NAMES, **settings)(context), context)
        assert_same(computed, expected, 1e-5)
        assert computed[0].dtype == torch.float32


def test_frozen_layers_compute_by_onednn_in_float32_and_are_as_before_afterwards() -> None:
    clip, context = encoder(dtype=torch.float32), learned(4, 16, dtype=torch.float32)
    before = clip.text_features(NAMES[3:], ["{}"])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        PromptedText(clip, NAMES)(context)
    calls = sum("_linear_pointwise" in event.name for event in profile.events())
    assert calls >= 4 * TEXT["layers"] or ONEDNN is None
    assert torch.equal(clip.text_features(NAMES[3:], ["{}"]), before)


@pytest.mark.parametrize("inside", [True, False], ids=["the encoder's", "the caller's"])
def test_bf16_autocast(inside: bool) -> None:
    precise, clip = encoder(dtype=torch.float32), encoder(dtype=torch.float32, precision="bf16" if inside else "fp32")
    context = learned(4, 16, dtype=torch.float32)
    expected = with_grads(PromptedText(precise, NAMES, savings=())(context), context)
    for settings in ({}, {"chunk": 3}, {"savings": ()}, {"savings": ["chunks"], "chunk": 3}):
        with torch.autocast("cpu", torch.bfloat16, enabled=not inside):
            features = PromptedText(clip, NAMES, **settings)(context)
        computed = with_grads(features, context)  # the backward pass runs outside
        assert computed[0].dtype == torch.float32
        assert 1e-5 < float((computed[0] - expected[0]).abs().max()) < 0.05
        assert float(F.cosine_similarity(computed[1].flatten(), expected[1].flatten(), 0)) > 0.98


def test_the_second_pass_runs_in_the_first_ones_autocast() -> None:
    contexts = []

    def encode(rows: Tensor, value: Tensor) -> Tensor:
        contexts.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return value[rows]

    for enabled in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            features = two_pass(encode, [torch.tensor([1, 0])], [False], learned(3, 2))
        features.sum().backward()
    assert contexts == [(grad, enabled, torch.bfloat16) for enabled in (True, False) for grad in (False, True)]


def test_the_same_to_the_bit_again() -> None:
    context = learned(4, 16, dtype=torch.float32)
    for settings in WAYS.values():
        text = PromptedText(encoder(dtype=torch.float32), NAMES, position="middle", **settings)
        first, second = (with_grads(text(context), context) for _ in range(2))
        assert all(torch.equal(before, after) for before, after in zip(first, second, strict=True))


def test_a_chunk_and_its_neighbours_do_not_matter_to_a_class() -> None:
    clip, context = encoder(), learned(4, 16)
    text = PromptedText(clip, NAMES, chunk=3)
    rows = torch.tensor([6, 0, 3])
    assert_same([text(context, rows=rows).detach()], [text(context).detach()[rows]], 1e-10)
    assert_same([text(context)[2].detach()], [text(context)[0].detach()], 1e-10)  # the same name twice
    alone = PromptedText(clip, NAMES[4:5])(context)
    assert_same([text(context)[4:5].detach()], [alone.detach()], 1e-10)


def test_rows_of_a_context_for_each_class() -> None:
    context, rows = learned(len(NAMES), 4, 16), torch.tensor([6, 0, 3, 4])
    expected = with_grads(oracle(encoder(), "end", context)[rows], context)
    for chunk in (None, 3):
        text = PromptedText(encoder(), NAMES, chunk=chunk)
        assert_same(with_grads(text(context, rows=rows), context), expected, 1e-10)


def test_a_context_for_each_image() -> None:
    clip, contexts = encoder(), learned(3, 4, 16)
    expected = with_grads(torch.stack([oracle(clip, "end", context) for context in contexts]), contexts)
    for settings in ({}, {"chunk": 3}, {"memory_gb": 1e-4}):
        text = PromptedText(clip, NAMES, **settings)
        assert_same(with_grads(text.per_image(contexts), contexts), expected, 1e-10)


def test_contexts_for_images_share_the_memory() -> None:
    clip, contexts = encoder(), learned(6, 4, 16)
    text = PromptedText(clip, NAMES)
    text.memory_bytes = 2 * text.kept_bytes(4)
    few, many = (saved(lambda count=count: text.per_image(contexts[:count]), clip.module) for count in (2, 6))  # type: ignore[misc]
    assert many < few / 2


def test_it_composes_with_any_loss() -> None:
    """Features that enter a loss twice, beside a term in the context itself."""
    clip, context = encoder(), learned(4, 16)
    images = F.normalize(torch.randn(5, 16, dtype=torch.float64), dim=-1)

    def loss(features: Tensor) -> Tensor:
        logits = 10 * images @ features.T
        return logits.logsumexp(1).sum() + (features @ features.T).pow(3).sum() + context.pow(2).sum()

    (expected,) = torch.autograd.grad(loss(oracle(clip, "end", context)), context)
    (computed,) = torch.autograd.grad(loss(PromptedText(clip, NAMES, chunk=3)(context)), context)
    assert_same([computed], [expected], 1e-10)


def test_without_a_context_it_is_encode_text() -> None:
    clip = encoder()
    ids = clip.tokenizer([name.replace("_", " ") + "." for name in NAMES])
    expected = F.normalize(clip.module.encode_text(ids), dim=-1)
    assert_same([PromptedText(clip, NAMES)(torch.zeros(0, 16, dtype=torch.float64))], [expected], 1e-10)


def test_a_context_of_words_is_encode_text() -> None:
    clip = encoder()
    text = PromptedText(clip, NAMES)
    context = text.words_to_context("a photo_of a")
    assert context.shape == (4, text.width)
    expected = clip.module.encode_text(clip.tokenizer([f"a photo of a {n.replace('_', ' ')}." for n in NAMES]))
    assert_same([text(context)], [F.normalize(expected, dim=-1)], 1e-10)
    with pytest.raises(InputError, match="must have at least one token"):
        text.words_to_context(" ")


def saved(make: Callable[[], Tensor], tower: nn.Module) -> int:
    """Bytes that a graph keeps for its backward pass, without the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    saved: dict[int, int] = {}
    held = []  # a freed storage could pass its address on to the next

    def note(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(value)
        return value

    with saved_tensors_hooks(note, lambda value: value):
        held.append(make())
    return sum(saved.values())


@pytest.mark.parametrize("kind", ["clip", "quick", "siglip"])
def test_the_arithmetic_of_memory(kind: str) -> None:
    clip = encoder(kind, torch.float32, width=64)
    context = learned(8, 64, dtype=torch.float32)
    names = ["red car", "old dog"] * 20
    for savings in ((), ("cut", "prefix")):
        text = PromptedText(clip, names, savings=savings)
        layout = text.layout(8)
        before = layout.shared if text.savings else 0
        length = int(layout.pooled.max()) + 1 - before if text.savings else 40
        estimate = len(names) * text.tower.saved_bytes(length, before, not text.savings)
        assert saved(lambda text=text: text(context), clip.module) == pytest.approx(estimate, rel=0.15)  # type: ignore[misc]


def test_two_passes_keep_no_graph_and_the_savings_save() -> None:
    clip = encoder(dtype=torch.float32)
    context = learned(8, 16, dtype=torch.float32)
    names = ["red car", "old dog"] * 20
    ways = ([], ["cut"], ["cut", "prefix"], list(SAVINGS))
    sizes = [
        saved(lambda way=way: PromptedText(clip, names, savings=way, chunk=4)(context), clip.module) for way in ways
    ]  # type: ignore[misc]
    assert sizes[0] > 2 * sizes[1] > 4 * sizes[2] > 20 * sizes[3]


def test_long_names_do_not_lengthen_the_chunks_of_short_ones() -> None:
    chunks = pack([3, 20, 3, 4, 19, 4], 4, lambda count, length: count * length <= 16)
    assert chunks == [[0, 2, 3, 5], [4], [1]]
    assert pack([5, 5, 5], 2, lambda count, length: True) == [[0, 1], [2]]


def test_the_tower_is_frozen_and_belongs_to_the_encoder() -> None:
    clip = encoder()
    text = PromptedText(clip, NAMES)
    text(learned(4, 16)).sum().backward()
    assert not isinstance(text, nn.Module)
    assert all(parameter.grad is None for parameter in clip.module.parameters())
    assert all(parameter.requires_grad for parameter in clip.module.visual.parameters())


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    clip, context = encoder(), learned(4, 16)
    with torch.no_grad():
        assert not PromptedText(clip, NAMES, chunk=2)(context).requires_grad
    assert not PromptedText(clip, NAMES)(context.detach()).requires_grad
    assert not PromptedText(clip, NAMES, chunk=2)(context.detach()).requires_grad


def test_a_prompt_that_is_too_long_is_refused_with_its_class() -> None:
    text = PromptedText(encoder(), NAMES)
    text.layout(17)  # start + 17 + 20 + full stop + end = 40
    with pytest.raises(InputError, match=r"at most 40 tokens for 'clip', got 41 for class 4 .*n_ctx of at most 17"):
        text(learned(18, 16))
    with pytest.raises(InputError, match=r"class 0 .*Use a shorter name"):
        PromptedText(encoder(), ["dog " * 60])(learned(4, 16))
    with pytest.raises(InputError, match=r"got 41 for class 0 "):
        PromptedText(encoder("siglip"), ["dog " * 36], position="front")(learned(3, 16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda text: text(torch.zeros(4, 8)), r"shape \(n_ctx, 16\).*got \(4, 8\)"),
        (lambda text: text(torch.zeros(3, 4, 16)), r"or \(8, n_ctx, 16\)"),
        (lambda text: text(torch.zeros(16)), r"got \(16,\)"),
        (lambda text: text(learned(4, 16), learned(3, 2, 16)), "D at most 2"),
        (lambda text: text(learned(4, 16), learned(1, 2, 8)), r"shape \(D, n, 16\)"),
        (lambda text: text(learned(4, 16), learned(1, 5, 16)), "at most as many tokens as the context, 4"),
        (lambda text: text(learned(4, 16), rows=torch.tensor([1, 1])), "each at most once"),
        (lambda text: text(learned(4, 16), rows=torch.tensor([8])), "from 0 to 7"),
        (lambda text: text.per_image(torch.zeros(4, 16)), r"shape \(images, n_ctx, 16\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call: Callable[[PromptedText], Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(PromptedText(encoder(), NAMES))


def test_settings_and_encoders_that_do_not_fit_are_refused() -> None:
    clip = encoder()
    with pytest.raises(InputError, match="one of 'end', 'middle' or 'front', got 'back'"):
        PromptedText(clip, NAMES, position=cast(Any, "back"))
    with pytest.raises(InputError, match="one of 'cut', 'prefix' or 'chunks', got 'cuts'"):
        PromptedText(clip, NAMES, savings=cast(Any, ["cuts"]))
    with pytest.raises(InputError, match="at least one name"):
        PromptedText(clip, [])
    with pytest.raises(InputError, match="choose an open_clip encoder"):
        PromptedText(nn.Linear(2, 2), NAMES)
    clip.module.text = nn.Linear(2, 2)  # where open_clip puts a HuggingFace tower
    with pytest.raises(InputError, match="has a Linear.*without `hf_model_name`"):
        PromptedText(clip, NAMES)
    with pytest.raises(InputError, match="pools 'none'"):
        PromptedText(encoder("eva", pool_type="none"), NAMES)
