"""Prompts in the image tower: against a slow pass written out, the papers' terms in NumPy, and in whole runs."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import VisionTransformer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail, catalogue, run
from imbalance_vlm.balancing.losses.cross_entropy import CrossEntropy
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.results.result import RunResult
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.training.loop import train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.schedules import constant
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.maple import MaPLeHead
from imbalance_vlm.tuning.prompt.promptsrc import PromptSRC, PromptSRCHead, divergence, gaussian_weights
from imbalance_vlm.tuning.prompt.vision_tokens import VisionTokens

VISION = {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
NAMES = ("cat", "sports_car", "red tailed black cockatoo")
COUNTS = np.array([9, 4, 1])
TOKENIZER = SimpleTokenizer(context_length=16)
METHODS = ("vpt", "ivlp", "maple", "promptsrc")
TWO_TOWERS = METHODS[1:]
every = pytest.mark.parametrize("name", METHODS)


class Bare:
    """An encoder of an image tower alone, in the tower's own precision."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def image_features(self, pixels: Tensor, kind: str) -> Tensor:
        made: Tensor = self.module(pixels)
        return made


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Frozen, in float64, with norms and biases that are not those of a fresh net."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return net.double().eval().requires_grad_(False)


def tower(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    return shaken(VisionTransformer(16, 8, 32, 3, 2, 4.0, output_dim=16, **settings))


@functools.cache
def model() -> Any:
    torch.manual_seed(0)
    net = shaken(open_clip.CLIP(16, VISION, TEXT)).float()
    net.logit_scale.data.fill_(2.0)
    return net


def encoder(precision: str = "fp32", net: Any = None) -> Any:
    """A tiny open_clip model that all tests share, as the runs of a study do."""
    return OpenClipEncoder(net or model(), Any, TOKENIZER, "tiny", "random", None, "", precision)  # type: ignore[arg-type]


def task(**changes: Any) -> Task:
    made = {
        "encoder": encoder(),
        "kind": "embedding",
        "class_names": NAMES,
        "novel_names": (),
        "templates": ("a photo of a {}.", "a {}."),
        "device": torch.device("cpu"),
        "epochs": 4,
        "seed": 0,
        "flips": False,
    }
    return Task(**(made | changes))


def method(name: str, **settings: Any) -> Any:
    return catalogue.PROMPTS.get(name).load()(**settings)


def made(name: str, on: Task | None = None, **settings: Any) -> tuple[Any, Any]:
    """(tuning, head); whoever asks for `vpt` closes the tuning."""
    torch.manual_seed(3)
    tuning = method(name, **settings)
    return tuning, tuning.head(on or task(), lambda: pytest.fail("a prompt method makes its own head"))


def batch(count: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(count, 3, 16, 16, generator=generator, dtype=dtype)
    return pixels, torch.arange(count) % len(NAMES)


def objective_of(tuning: Any, head: Any, on: Task | None = None, criterion: Any = None) -> Objective:
    on = on or task()
    frozen = on.encoder.text_features(on.class_names, on.templates) if head.learns_text else None
    criterion = criterion or CrossEntropy(LongTail(COUNTS))
    return Objective(head, criterion, tuning.regularizers(on), tuning.gradient(on), frozen)


def steps(objective: Objective, tuning: Any, count: int = 3, lr: float = 0.05) -> None:
    optimizer = sgd(tuning.parameters(objective.head), lr=lr, weight_decay=0.1)
    objective.train()
    for _ in range(count):
        optimizer.zero_grad()
        objective.backward(objective(*batch()))
        optimizer.step()


# -- tokens in an image tower ------------------------------------------------------------------------------------------


def slow_pass(net: VisionTransformer, pixels: Tensor, tokens: Sequence[Tensor], pool: str = "tok") -> Tensor:
    """The tower written out: image by image, patch by patch, head by head, with the tokens put in by hand."""
    outputs = []
    p, w = net.patch_size[0], net.conv1.out_channels
    for image in pixels:
        rows = [net.class_embedding]
        for top in range(0, image.shape[1], p):
            for left in range(0, image.shape[2], p):
                patch = image[:, top : top + p, left : left + p]
                rows.append((net.conv1.weight * patch).sum((1, 2, 3)))
        own = len(rows)
        x = torch.stack(rows) + net.positional_embedding
        if tokens:
            x = torch.cat([x, tokens[0]])
        x = torch.stack([net.ln_pre(row) for row in x])
        for number, block in enumerate(net.transformer.resblocks):
            if 0 < number < len(tokens):
                x = torch.cat([x[:own], tokens[number]])
            normed = block.ln_1(x)
            heads = block.attn.num_heads
            q, k, v = (normed @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).split(w, dim=1)
            parts = []
            for h in range(heads):
                cols = slice(h * w // heads, (h + 1) * w // heads)
                scores = q[:, cols] @ k[:, cols].T / math.sqrt(w // heads)
                parts.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, cols])
            x = x + block.attn.out_proj(torch.cat(parts, 1))
            x = x + block.mlp(block.ln_2(x))
        x = net.ln_post(x[:own])
        pooled = x[0] if pool == "tok" else x[1:].mean(0)
        outputs.append(pooled @ net.proj)
    return torch.stack(outputs)


@pytest.mark.parametrize("pool", ["tok", "avg"])
@pytest.mark.parametrize("sizes", [(), (2,), (2, 2), (3, 3, 3), (1, 4, 2)])
def test_tokens_enter_as_in_a_pass_written_out(sizes: tuple[int, ...], pool: str) -> None:
    net = tower(pool_type=pool)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(n, 32, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes]
    pixels = batch(2, torch.float64)[0]
    found = VisionTokens(Bare(net), "test")(pixels, tokens)  # type: ignore[arg-type]
    wanted = slow_pass(net, pixels, tokens, pool)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if tokens:
        aim = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        ours = torch.autograd.grad((found * aim).sum(), tokens)
        theirs = torch.autograd.grad((wanted * aim).sum(), tokens)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(found, net(pixels), atol=1e-3)


def test_no_tokens_are_the_untouched_tower() -> None:
    net = tower()
    pixels = batch(2, torch.float64)[0]
    images = VisionTokens(Bare(net), "test")  # type: ignore[arg-type]
    assert torch.equal(images(pixels, ()), net(pixels))
    assert torch.equal(images(pixels, [torch.zeros(0, 32, dtype=torch.float64)] * 3), net(pixels))


def test_a_tower_of_timm_s_takes_tokens_wherever_they_stand() -> None:
    """They have no position: in front of the image's own, put there by hand, they do the same."""
    torch.manual_seed(0)
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, pre_norm=True
    )
    shaken(net)
    tokens = torch.randn(2, 32, dtype=torch.float64)
    pixels = batch(2, torch.float64)[0]
    found = VisionTokens(Bare(net), "test")(pixels, [tokens])  # type: ignore[arg-type]
    x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(pixels))))
    x = torch.cat([net.norm_pre(tokens).expand(2, -1, -1), x], 1)
    torch.testing.assert_close(found, net.forward_head(net.norm(net.blocks(x)[:, 2:])))


def test_a_pass_leaves_nothing_in_the_tower() -> None:
    net = tower()
    images = VisionTokens(Bare(net), "test")  # type: ignore[arg-type]
    wrong = [torch.zeros(2, 32, dtype=torch.float64)] * 2 + [torch.zeros(2, 32)]  # another dtype is fine
    images(batch(2, torch.float64)[0], wrong)
    with pytest.raises(RuntimeError):
        images(torch.zeros(2, 5, 16, 16, dtype=torch.float64), wrong)
    for module in net.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


@pytest.mark.parametrize("tokens", [[torch.zeros(2, 16)], [torch.zeros(2, 32)] * 4, [torch.zeros(32)]])
def test_tokens_that_do_not_fit_are_refused(tokens: list[Tensor]) -> None:
    with pytest.raises(InputError, match=r"`tokens` must be tensors of shape \(n, 32\).* at most 3 blocks"):
        VisionTokens(Bare(tower()), "test")(batch(1, torch.float64)[0], tokens)  # type: ignore[arg-type]


# -- the methods' prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_the_head_is_cosines_of_two_prompted_towers(name: str) -> None:
    _, head = made(name)
    head.eval()
    pixels = batch()[0]
    net = copy.deepcopy(model()).visual
    f = F.normalize(slow_pass(net, pixels, head.vision()), dim=-1)
    context = torch.cat([head.context, head.rest])
    t = head.prompted(context, head.deep)
    scale = math.exp(2.0)
    torch.testing.assert_close(head(pixels), scale * f @ t.T, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(head.vision()[0], torch.zeros(()))


@pytest.mark.parametrize(("name", "learned"), [("ivlp", 2), ("maple", 2), ("promptsrc", 4)])
def test_words_begin_and_the_rest_of_them_stay(name: str, learned: int) -> None:
    tuning, head = made(name)
    words = head.prompted.words_to_context("a photo of a")
    assert torch.equal(head.prompt()[0], words)
    assert (len(head.context), len(head.rest)) == (learned, 4 - learned)
    steps(objective_of(tuning, head), tuning)
    assert not torch.allclose(head.prompt()[0][:learned], words[:learned])
    assert torch.equal(head.prompt()[0][learned:], words[learned:])
    assert "rest" not in head.state_dict()


@pytest.mark.parametrize("name", ["ivlp", "maple"])
def test_fewer_words_than_tokens_and_none_at_all(name: str) -> None:
    _, head = made(name, n_ctx=3, init="a")
    assert torch.equal(head.context[:1], head.prompted.words_to_context("a"))
    assert (len(head.context), len(head.rest)) == (3, 0)
    _, head = made(name, n_ctx=3, init=None)
    assert 0.01 < float(head.context.detach().std()) < 0.03
    assert (len(head.context), len(head.rest)) == (3, 0)


@pytest.mark.parametrize(
    ("name", "depth", "text", "image"),
    [("ivlp", 9, 2, 3), ("ivlp", 2, 2, 2), ("ivlp", 1, 1, 1), ("maple", 9, 2, 2), ("maple", 1, 1, 1)],
)
def test_depth_is_at_most_the_towers_own(name: str, depth: int, text: int, image: int) -> None:
    """A text tower of 2 blocks, an image tower of 3: maple couples block with block, ivlp does not."""
    tuning, head = made(name, depth=depth)
    assert 1 + len(head.deep) == text
    assert len(head.vision()) == image
    steps(objective_of(tuning, head), tuning, 1)


def test_maple_s_image_tokens_are_linear_in_its_text_tokens() -> None:
    _, head = made("maple")
    assert isinstance(head, MaPLeHead)
    prompts = [head.context, *head.deep]
    for number, (found, prompt) in enumerate(zip(head.vision(), prompts, strict=True)):
        coupling = head.couplings[number]
        A, b, P = (value.detach().numpy() for value in (coupling.weight, coupling.bias, prompt))
        for n in range(len(P)):
            wanted = [sum(A[i, j] * P[n, j] for j in range(16)) + b[i] for i in range(32)]
            np.testing.assert_allclose(found.detach().numpy()[n], wanted, rtol=1e-4, atol=1e-6)
    starts = [coupling.weight for coupling in head.couplings]
    assert not torch.allclose(*starts)


@pytest.mark.parametrize(("name", "coupled"), [("maple", True), ("ivlp", False)])
def test_the_image_side_teaches_the_text_tokens_where_they_are_coupled(name: str, coupled: bool) -> None:
    _, head = made(name)
    aim = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad((head.embed(batch()[0]) * aim).sum(), [head.context, head.deep], allow_unused=True)
    assert all((value is not None and float(value.abs().max()) > 0) == coupled for value in found)


@every
def test_the_same_prompts_over_other_names(name: str) -> None:
    tuning, head = made(name)
    try:
        steps(objective_of(tuning, head), tuning)
        other = head.for_names(("dog", "tea_pot")).eval()
        kept = head.eval()(batch()[0])
        assert other(batch()[0]).shape == (5, 2)
        assert torch.equal(other.embed(batch()[0]), head.embed(batch()[0]))
        features = head.text_of(("dog", "tea_pot"))().detach()
        torch.testing.assert_close(other.classifier()[0].detach(), math.exp(2.0) * features)
        assert torch.equal(head(batch()[0]), kept)
        assert {id(value) for value in other.parameters()} == {id(value) for value in head.parameters()}
    finally:
        tuning.close()


# -- promptsrc ---------------------------------------------------------------------------------------------------------


def test_gaussian_weights_are_the_formula_s() -> None:
    for epochs, mean, std in ((20, 15.0, 1.0), (50, 30.0, 30.0), (20, 6.0, 10.0)):
        density = [
            math.exp(-0.5 * ((e - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)) for e in range(1, epochs + 1)
        ]
        found = gaussian_weights(epochs, mean, std)
        np.testing.assert_allclose(found, np.array(density) / sum(density), rtol=1e-12)
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
    assert gaussian_weights(3, 500.0, 1.0).tolist() == pytest.approx([0, 0, 1])  # where the densities are all 0


def test_promptsrc_adds_its_three_terms() -> None:
    """25 mean |t - t'| + 10 mean |f - f'| + KL(q', q) / C, in loops, beside the loss."""
    on = task()
    tuning, head = made("promptsrc", on)
    objective = objective_of(tuning, head, on)
    steps(objective, tuning, 2)
    pixels, targets = batch()
    value = float(objective(pixels, targets).detach())
    net, scale = model(), math.exp(2.0)
    C, N, d = len(NAMES), len(pixels), 16

    def unit(rows: Tensor) -> Any:
        rows = rows.detach().double().numpy()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    f = unit(slow_pass(net.visual, pixels, head.vision()))
    f_frozen = unit(net.visual(pixels))
    t = unit(head.prompted(*head.prompt()))
    t_frozen = unit(on.encoder.text_features(NAMES, on.templates))

    def probabilities(images: Any, texts: Any) -> Any:
        z = scale * images @ texts.T
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    q, q_frozen = probabilities(f, t), probabilities(f_frozen, t_frozen)
    ce = -sum(math.log(q[n, targets[n]]) for n in range(N)) / N
    text = sum(abs(t[c, i] - t_frozen[c, i]) for c in range(C) for i in range(d)) / (C * d)
    image = sum(abs(f[n, i] - f_frozen[n, i]) for n in range(N) for i in range(d)) / (N * d)
    kl = sum(q_frozen[n, c] * math.log(q_frozen[n, c] / q[n, c]) for n in range(N) for c in range(C)) / (N * C)
    assert min(text, image, kl) > 1e-3  # each term would be missed
    assert value == pytest.approx(ce + 25 * text + 10 * image + kl, rel=1e-4)


def test_the_divergence_weighs_by_the_frozen_model() -> None:
    a, b = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[0.0, 0.0]]).double()
    q, p = [math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)], [0.5, 0.5]
    wanted = sum(p[c] * math.log(p[c] / q[c]) for c in range(2)) / 2
    assert float(divergence(a, b)) == pytest.approx(wanted)
    assert float(divergence(b, a)) != pytest.approx(wanted)


def test_the_weights_of_the_terms_are_settings() -> None:
    on = task()
    plain, head = made("promptsrc", on, text=0.0, image=0.0, logits=0.0)
    value = objective_of(plain, head, on).train()(*batch())
    plain_loss = F.cross_entropy(head(batch()[0]), batch()[1])
    assert float(value.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-5)


def pixel_run(folder: Path, stop_before: int | None = None) -> tuple[list[Tensor], PromptSRCHead]:
    """Four epochs of promptsrc in the training loop: what was trained behind each, and the head in the end."""
    folder.mkdir(exist_ok=True)
    on = task(epochs=4)
    tuning, head = made("promptsrc", on, mean=2.0, std=1.0)
    objective = objective_of(tuning, head, on)
    pixels, labels = batch(8)
    source = FeatureSource([pixels.numpy()], labels.numpy(), torch.device("cpu"))
    optimizer = sgd(tuning.parameters(head), lr=0.05)
    schedule = constant(4, 2)
    sampler = catalogue.SAMPLERS.get("instance").load()(source.labels, 0)
    seen: list[Tensor] = []

    def after(epoch: int) -> dict[str, float]:
        seen.append(nn.utils.parameters_to_vector(head.parameters()).detach().clone())
        tuning.after_epoch(head, epoch)
        return {}

    told = objective.on_epoch

    def on_epoch(epoch: int, epochs: int) -> None:
        if epoch == stop_before:
            raise KeyboardInterrupt
        told(epoch, epochs)

    objective.on_epoch = on_epoch  # type: ignore[method-assign]
    plan = TrainingSettings(epochs=4, batch_size=4, checkpoint_seconds=0)
    train(objective, source, sampler, optimizer, schedule, folder, after, settings=plan)
    before = nn.utils.parameters_to_vector(head.parameters()).detach().clone()
    assert torch.equal(before, seen[-1])
    tuning.finish(head)
    return seen, head


def test_the_result_is_the_average_over_the_epochs_also_of_a_run_taken_up_again(tmp_path: Path) -> None:
    seen, head = pixel_run(tmp_path / "through")
    density = [math.exp(-0.5 * (e - 2.0) ** 2) for e in (1, 2, 3, 4)]
    wanted = sum(w / sum(density) * v for w, v in zip(density, seen, strict=True))
    found = nn.utils.parameters_to_vector(head.parameters()).detach()
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, seen[-1], atol=1e-4)
    with pytest.raises(KeyboardInterrupt):
        pixel_run(tmp_path / "killed", stop_before=2)
    _, resumed = pixel_run(tmp_path / "killed")
    assert torch.equal(nn.utils.parameters_to_vector(resumed.parameters()), found)


# -- what all of them must do ------------------------------------------------------------------------------------------


@every
def test_training_moves_the_prompts_and_leaves_the_encoder_as_it_was(name: str) -> None:
    net = model()
    net.requires_grad_(True)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    features = net.encode_image(batch()[0])
    tuning, head = made(name)
    start = {key: value.detach().clone() for key, value in head.named_parameters()}
    steps(objective_of(tuning, head), tuning)
    for key, value in head.named_parameters():
        assert not torch.equal(value, start[key]), key
    with tuning.base():
        torch.testing.assert_close(net.encode_image(batch()[0]), features)
    own = {id(value) for value in head.parameters()}
    theirs = [value for value in net.parameters() if id(value) not in own]
    assert all(value.grad is None and not value.requires_grad for value in theirs)
    tuning.close()
    assert all(value.requires_grad for value in net.parameters())
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(net.encode_image(batch()[0]), features)
    net.requires_grad_(False)


@every
def test_half_precision(name: str) -> None:
    on = task(encoder=encoder("bf16"))
    tuning, head = made(name, on)
    try:
        seen = []
        block = model().visual.transformer.resblocks[1]
        handle = block.mlp.register_forward_hook(lambda *args: seen.append(args[2].dtype))
        steps(objective_of(tuning, head, on), tuning, 1)
        handle.remove()
        assert set(seen) == {torch.bfloat16}
        found = head.eval()(batch()[0])
        assert bool(found.isfinite().all())
        assert {found.dtype, *(value.dtype for value in head.parameters())} == {torch.float32}
    finally:
        tuning.close()


@every
def test_a_copy_is_independent_and_an_average_is_put_back(name: str) -> None:
    tuning, head = made(name)
    try:
        objective = objective_of(tuning, head)
        steps(objective, tuning, 1)
        average = Ema(head, 0.5, warm_up=False)
        average.update(head)
        first = {key: value.clone() for key, value in head.state_dict().items()}
        twin = copy.deepcopy(head).eval()
        wanted = twin(batch()[0]).detach()
        steps(objective, tuning, 1)
        assert torch.equal(twin(batch()[0]), wanted)
        average.update(head)
        last = {key: value.clone() for key, value in head.state_dict().items()}
        head.load_state_dict(average.state())
        for key, value in head.state_dict().items():
            torch.testing.assert_close(value, (first[key] + last[key]) / 2)
    finally:
        tuning.close()


SPECIAL_HEADS = {
    "sade": "its three losses are for three experts",
    "etf_dot_regression": "it is for products with fixed prototypes, without a scale",
}


@pytest.mark.parametrize("loss", catalogue.LOSSES.names())
def test_every_loss_trains_both_towers_prompts(loss: str) -> None:
    if loss in SPECIAL_HEADS:
        pytest.skip(SPECIAL_HEADS[loss])
    known = catalogue.LOSSES.get(loss).settings()
    settings = {"head_scale": encoder().logit_scale} if "head_scale" in known else {}
    tuning, head = made("promptsrc")
    before = {key: value.detach().clone() for key, value in head.named_parameters()}
    objective = objective_of(tuning, head, criterion=create_loss(loss, COUNTS, **settings))
    objective.on_epoch(0, 2)
    steps(objective, tuning, 1)
    for key, value in head.named_parameters():
        assert bool(value.isfinite().all()), key
        assert not torch.equal(value, before[key]), key


# -- what is refused ---------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ()}, "at least one class to train on, got none"),
        ({"class_names": ("tea_cup", "cat", "tea cup")}, "got 'tea cup' for class 0 and class 2"),
        ({"kind": "class_token"}, "'embedding', got 'class_token'"),
    ],
    ids=["no classes", "a name twice", "another space"],
)
def test_bad_input_is_refused_in_words(name: str, changes: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        made(name, task(**changes))


@pytest.mark.parametrize("name", METHODS)
def test_a_tower_of_another_kind_is_refused(name: str) -> None:
    vision = {"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}
    net = open_clip.CLIP(16, vision, TEXT).eval()
    with pytest.raises(InputError, match=f"'{name}' needs a vision transformer .*ModifiedResNet"):
        made(name, task(encoder=encoder(net=net)))


@pytest.mark.parametrize("name", TWO_TOWERS)
def test_prompts_that_are_too_long_or_have_no_text_tower_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"at most 16 tokens .*for class 2"):
        made(name, n_ctx=12)
    with pytest.raises(InputError, match="has none; choose an open_clip encoder"):
        made(name, task(encoder=object()))


def test_promptsrc_s_terms_need_its_head() -> None:
    with pytest.raises(InputError, match=r"call head\(\) first"):
        PromptSRC().regularizers(task())
    tuning, head = made("promptsrc")
    objective = objective_of(tuning, head)
    before = head.context.detach().clone()
    tuning.after_epoch(head, 1)
    tuning.finish(head)  # one epoch of four
    assert torch.equal(head.context, before)
    embeddings, logits = objective.train().outputs(batch()[0])
    with pytest.raises(InputError, match="all 3 images of a batch, and has 5"):
        objective.value(embeddings[:3], logits[:3], batch()[1][:3])
    objective.frozen_text = None
    with pytest.raises(InputError, match="text features"):
        objective(*batch())


# -- in a recipe -------------------------------------------------------------------------------------------------------

SAVED = {
    "vpt": {"inner.weight": (4, 16)} | {f"tower.transformer.resblocks.{i}.vpt.tokens": (2, 32) for i in range(2)},
    "ivlp": {"context": (2, 16), "deep": (1, 2, 16), "tokens": (2, 2, 32)},
    "promptsrc": {"context": (4, 16), "deep": (1, 4, 16), "tokens": (2, 2, 32)},
    "maple": {"context": (2, 16), "deep": (1, 2, 16)}
    | {f"couplings.{i}.{key}": shape for i in range(2) for key, shape in (("weight", (32, 16)), ("bias", (32,)))},
}


def run_of(recipe: dict[str, Any], name: str, runs: Path, **changes: Any) -> RunResult:
    tuning = {"name": "prompt", "method": name} | ({} if name == "maple" else {"tokens": 2})
    plan = {"tuning": tuning, "head": "text", "training.checkpoint_seconds": 0.0, "training.optimizer.lr": 0.05}
    found = run(recipe, plan | changes, runs=runs, device="cpu")
    assert isinstance(found, RunResult)
    return found


@every
def test_a_run_saves_what_was_trained_and_goes_on_where_it_was_interrupted(
    recipe: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = run_of(recipe, name, tmp_path / "through")
    saved = load_file(through.path / "head.safetensors")
    assert {key: tuple(value.shape) for key, value in saved.items()} == SAVED[name]
    trained = sum(value.numel() for key, value in saved.items() if key != "inner.weight")
    assert through.record["cost"]["trainable_parameters"] == trained
    lines = (through.path / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert len(losses) == 3
    assert np.isfinite(losses).all()

    if name not in ("vpt", "maple"):  # one of each kind
        return

    told = Objective.on_epoch

    def stop(self: Objective, epoch: int, epochs: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        told(self, epoch, epochs)

    monkeypatch.setattr(Objective, "on_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run_of(recipe, name, tmp_path / "killed")
    monkeypatch.setattr(Objective, "on_epoch", told)
    resumed = run_of(recipe, name, tmp_path / "killed")
    assert (resumed.path / "head.safetensors").read_bytes() == (through.path / "head.safetensors").read_bytes()
    assert resumed.scores["overall"] == through.scores["overall"]


def test_an_average_of_weights_and_a_second_stage(recipe: dict[str, Any], tmp_path: Path) -> None:
    changes = {"training.ema": 0.5, "training.epochs": 1, "balancing.second_stage": {"name": "tau_norm", "tau": 0.5}}
    assert np.isfinite(run_of(recipe, "vpt", tmp_path, **changes).scores["overall"])
