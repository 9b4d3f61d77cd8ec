"""Prompt methods on the text side, against open_clip's own text encoding of the same prompts."""

from __future__ import annotations

import copy
import csv
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
from imbalance_vlm.tuning.prompt.anchors import anchor_for, external_names
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from imbalance_vlm import InputError, LongTail, catalogue, run
from imbalance_vlm.balancing.objective import Objective
from imbalance_vlm.balancing.samplers.instance import InstanceSampler
from imbalance_vlm.data.prepare import create_dataset
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.open_clip import OpenClipEncoder
from imbalance_vlm.encoders.prompt_layout import Position
from imbalance_vlm.encoders.sources import ImageSource
from imbalance_vlm.evaluation.evaluate import predict
from imbalance_vlm.heads.base import Head
from imbalance_vlm.training.averaging import Ema
from imbalance_vlm.training.checkpoints import load_weights
from imbalance_vlm.tuning.base import Task
from imbalance_vlm.tuning.prompt.base import PromptHead
from imbalance_vlm.tuning.prompt.cocoop import CoCoOpHead

VISION = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
NAMES = ("cat", "sports car", "red tailed black cockatoo")
NOVEL = ("dog", "tea pot")
COUNTS = np.array([9, 4, 1])
TOKENIZER = SimpleTokenizer(context_length=16)


@functools.cache
def encoder() -> Any:
    """A tiny open_clip model in float64, with weights large enough for every token to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = open_clip.CLIP(16, VISION, TEXT).double()
        for parameter in made.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        made.logit_scale.data.fill_(2.0)
    tiny = OpenClipEncoder(made, cast(Any, None), TOKENIZER, "tiny", "random", None, "")
    tiny._widths = {"embedding": 16}  # it would be asked with an image in float32
    return tiny


def task(**changes: Any) -> Task:
    made = {
        "encoder": encoder(),
        "kind": "embedding",
        "class_names": NAMES,
        "novel_names": (),
        "templates": ("a photo of a {}.", "a {}."),
        "device": torch.device("cpu"),
        "epochs": 2,
        "seed": 0,
        "flips": False,
    }
    return Task(**(made | changes))


def method(name: str, **settings: Any) -> Any:
    return catalogue.PROMPTS.get(name).load()(**settings)


def head_of(name: str = "coop", on: Task | None = None, **settings: Any) -> PromptHead:
    torch.manual_seed(3)
    settings = {"n_ctx": 3, "init": None} | settings
    made: PromptHead = method(name, **settings).head(on or task(), _no_plain_head)
    return made


def _no_plain_head() -> Head:
    raise AssertionError("a prompt method makes its own head")


def images(count: int = 5) -> tuple[Tensor, Tensor]:
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return rows, torch.arange(count) % len(NAMES)


def text_by_open_clip(names: Sequence[str], contexts: Tensor, position: Position = "end") -> Tensor:
    """`encode_text` with the rows of `contexts` (C, n, w) in place of the embeddings of n stand-ins, unit rows."""
    n, ids, places = contexts.shape[1], [], []
    for name in names:
        words, both = TOKENIZER.encode(name), TOKENIZER.encode(name + ".")
        before = {"end": n, "middle": n // 2, "front": 0}[position]
        row = [None] * before + both[: len(words)] + [None] * (n - before) + both[len(words) :]
        row = [TOKENIZER.sot_token_id, *row, TOKENIZER.eot_token_id]
        places.append([place for place, token in enumerate(row) if token is None])
        ids.append([TOKENIZER.encode("x")[0] if token is None else token for token in row] + [0] * (16 - len(row)))
    module = encoder().module

    def put_in(_: Any, __: Any, made: Tensor) -> Tensor:
        rows = [list(row) for row in made]
        for row, where, tokens in zip(rows, places, contexts, strict=True):
            for place, token in zip(where, tokens, strict=True):
                row[place] = token
        return torch.stack([torch.stack(row) for row in rows])

    handle = module.token_embedding.register_forward_hook(put_in)
    try:
        return F.normalize(module.encode_text(torch.tensor(ids)), dim=-1)
    finally:
        handle.remove()


def cosines(features: Tensor, text: Tensor) -> Tensor:
    """exp(logit_scale) times the cosine, pair by pair."""
    scale = float(np.exp(2.0))
    rows = [[scale * (f @ t) / (f.norm() * t.norm()) for t in text] for f in features]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True], ids=["shared", "per class"])
@pytest.mark.parametrize("chunk", [None, 1])
def test_coop_is_open_clip_behind_a_context(position: Position, csc: bool, chunk: int | None) -> None:
    head = head_of(position=position, csc=csc, chunk=chunk)
    assert head.context.shape == ((3, 3, 16) if csc else (3, 16))
    features, targets = images()
    logits = head(features)
    context = head.context.detach().clone().requires_grad_()
    expected = cosines(features, text_by_open_clip(NAMES, context.expand(3, 3, 16), position))
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    F.cross_entropy(logits, targets).backward()
    F.cross_entropy(expected, targets).backward()
    torch.testing.assert_close(head.context.grad, context.grad, rtol=0, atol=1e-10)
    assert float(cast(Tensor, context.grad).abs().max()) > 1e-4


def test_the_classifier_is_the_logits() -> None:
    head = head_of()
    features, _ = images()
    weight, bias = head.classifier()
    assert bias is None
    torch.testing.assert_close(F.linear(head.embed(features), weight), head(features))


def test_words_give_the_start_and_their_number_the_length() -> None:
    head = head_of(n_ctx=None, init="a photo of a")
    ids = TOKENIZER.encode("a photo of a")
    assert torch.equal(head.context, encoder().module.token_embedding.weight[ids])
    head.eval()
    expected = F.normalize(encoder().module.encode_text(TOKENIZER([f"a photo of a {name}." for name in NAMES])), dim=-1)
    torch.testing.assert_close(head.text_features(), expected.detach(), rtol=0, atol=1e-9)
    own = head_of(n_ctx=4, init="a photo of a", csc=True)
    assert own.context.shape == (3, 4, 16)
    assert bool((own.context == own.context[0]).all())
    torch.manual_seed(1)
    assert float(head_of(n_ctx=None).context.detach().std()) == pytest.approx(0.02, rel=0.3)
    with pytest.raises(InputError, match=r"number of tokens of `tuning.init`.*which is 4, got 16"):
        head_of(n_ctx=16, init="a photo of a")


def test_a_head_is_its_context_alone() -> None:
    head = head_of()
    assert list(head.state_dict()) == ["context"]
    assert not list(head.children())
    head(images()[0]).sum().backward()
    twin = copy.deepcopy(head)
    assert twin.prompted.tower is head.prompted.tower
    assert twin.text is None
    assert head.text is not None
    twin.context.data += 1.0
    assert not torch.equal(twin(images()[0]), head(images()[0]))
    average = Ema(head, 0.5)
    average.update(head)
    assert torch.equal(average.state()["context"], head.context)


def test_a_tested_head_reads_its_names_once(monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls = head_of(), []
    encode = type(head.prompted).__call__

    def counted(self: Any, *prompt: Any) -> Tensor:
        calls.append(prompt)
        return encode(self, *prompt)

    monkeypatch.setattr(type(head.prompted), "__call__", counted)
    features, _ = images()
    head(features), head(features)
    assert len(calls) == 2
    assert head.text is not None
    assert head.text.requires_grad
    head.eval()
    before = head(features)
    head(features), head.classifier()
    assert len(calls) == 3
    assert not before.requires_grad
    head.load_state_dict({"context": head.context.detach() + 0.1})
    after = head(features)
    assert len(calls) == 4
    assert not torch.equal(before, after)
    assert not head.text.requires_grad
    head.train()
    head(features)
    head.eval()
    head(features)
    assert len(calls) == 6


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_the_same_prompt_over_other_names(name: str) -> None:
    head = head_of(name)
    other = head.for_names(NOVEL)
    assert other.context is head.context
    give = head.text_of(NOVEL)
    with torch.no_grad():
        head.context += 0.3  # what is learned later holds for the other names too
    context = cast(Tensor, head.prompt()[0])
    expected = text_by_open_clip(NOVEL, context.expand(2, 3, 16))
    torch.testing.assert_close(give(), expected, rtol=0, atol=1e-9)
    other.eval()
    torch.testing.assert_close(other.text_features(), expected.detach(), rtol=0, atol=1e-9)
    assert other(images()[0]).shape == (5, 2)
    assert head(images()[0]).shape == (5, 3)
    give().sum().backward()
    assert head.context.grad is not None


def test_other_names_that_are_too_long_are_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"at most 16 tokens .*for class 1"):
        head_of().for_names(("dog", "very " * 12 + "long name"))


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_in_bf16_the_prompt_stays_in_float32(name: str) -> None:
    half: Any = copy.deepcopy(encoder()).float()
    half.precision = "bf16"
    features, targets = images()
    found, exact = head_of(name, task(encoder=half)), head_of(name)
    logits = found(features.float())
    assert found.context.dtype == logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact(features), rtol=0, atol=0.1)
    F.cross_entropy(logits, targets).backward()
    assert found.context.grad is not None
    assert bool(found.context.grad.isfinite().all())


def test_one_context_a_class_has_none_for_others() -> None:
    head = head_of(csc=True)
    with pytest.raises(InputError, match="needs a context that all classes share"):
        head.for_names(NOVEL)
    for names in ("novel", "external"):
        with pytest.raises(InputError, match=r"tuning\.csc"):
            anchor_for({"names": names, "external": 3}, head, task(novel_names=NOVEL))


# -- CoCoOp --------------------------------------------------------------------------------------------------------


def cocoop_logits(head: CoCoOpHead, features: Tensor) -> Tensor:
    """Image after image, through two matrices and a threshold."""
    first, _, second = head.net
    rows = []
    for feature in features:
        unit = feature / feature.norm()
        hidden = torch.stack([(row @ unit + b).clamp(min=0) for row, b in zip(first.weight, first.bias, strict=True)])
        shift = torch.stack([row @ hidden + b for row, b in zip(second.weight, second.bias, strict=True)])
        context = torch.stack([token + shift for token in head.context])
        rows.append(cosines(feature[None], text_by_open_clip(NAMES, context.expand(3, 3, 16)))[0])
    return torch.stack(rows)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("chunk", [None, 2])
def test_cocoop_is_a_prompt_for_each_image(batch: int, chunk: int | None) -> None:
    head = cast(CoCoOpHead, head_of("cocoop", chunk=chunk))
    assert head.net[0].weight.shape == (1, 16)
    features, targets = images(batch)
    expected = cocoop_logits(head, features)
    trained = list(head.parameters())
    slopes = torch.autograd.grad(F.cross_entropy(expected, targets), trained)
    logits = head(features)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)
    F.cross_entropy(logits, targets).backward()
    for parameter, slope in zip(trained, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope, rtol=0, atol=1e-10)
    assert head.text is not None
    assert head.text.shape == (3, 16)
    head.eval()
    with torch.no_grad():
        torch.testing.assert_close(head(features), expected.detach(), rtol=0, atol=1e-9)


def test_cocoop_remembers_the_mean_image() -> None:
    head = cast(CoCoOpHead, head_of("cocoop"))
    embeddings = head.embed(images(7)[0])
    for part in embeddings.split(3):
        head.observe(part, torch.zeros(len(part)))
    torch.testing.assert_close(head.mean, embeddings.mean(0))
    assert set(dict(head.named_parameters())) == {
        "context",
        *(f"net.{n}.{w}" for n in "02" for w in ("weight", "bias")),
    }
    weight, _ = head.classifier()
    context = head.context + head.net(embeddings.mean(0))
    expected = head.logit_scale * text_by_open_clip(NAMES, context.expand(3, 3, 16))
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-9)


def test_cocoop_s_text_is_that_of_the_whole_batch_where_processes_share_it() -> None:
    head = cast(CoCoOpHead, head_of("cocoop")).train()
    step, features = objective("cocoop", head), images(5)[0]
    step.outputs(features)
    assert head.text is not None
    wanted = head.text.detach()
    others = head.prompted.per_image(head.contexts(head.embed(features[2:])))
    step.outputs(features[:2])
    assert not torch.allclose(head.text, wanted, rtol=0, atol=1e-9)
    step.gather(lambda own: torch.cat([own, others]))
    torch.testing.assert_close(head.text, wanted, rtol=0, atol=1e-9)
    copy.deepcopy(head)


# -- KgCoOp, ProGrad, anchors ----------------------------------------------------------------------------------------


def objective(name: str, head: Head, loss: Any = None, **settings: Any) -> Objective:
    tuning, on = method(name, **settings), task()
    frozen = on.encoder.text_features(NAMES, on.templates)
    loss = loss or catalogue.LOSSES.get("cross_entropy").load()(LongTail(COUNTS))
    return Objective(head, loss, tuning.regularizers(on), tuning.gradient(on), frozen)


def sentences(names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean of the unit features of a name in each sentence, unit rows."""
    rows = []
    for name in names:
        parts = [encoder().module.encode_text(TOKENIZER([sentence.format(name)]))[0] for sentence in templates]
        rows.append(F.normalize(sum((F.normalize(part, dim=-1) for part in parts), torch.zeros(16)), dim=-1))
    return torch.stack(rows).detach()


@pytest.mark.parametrize(("target", "count"), [("template", 1), ("ensemble", 2)])
def test_kgcoop_adds_eight_distances_to_the_plain_sentence(target: str, count: int) -> None:
    head = head_of("kgcoop", target=target)
    features, targets = images()
    found = objective("kgcoop", head, target=target)(features, targets)
    text = text_by_open_clip(NAMES, head.context.expand(3, 3, 16))
    plain = sentences(NAMES, task().templates[:count])
    distance = sum(1 - float((t @ w).detach()) for t, w in zip(text, plain, strict=True)) / 3
    expected = float(F.cross_entropy(cosines(features, text), targets).detach()) + 8.0 * distance
    assert float(found.detach()) == pytest.approx(expected, abs=1e-6)
    assert distance > 0.05


@pytest.mark.parametrize("chunk", [None, 1])
def test_prograd_takes_out_what_points_against_the_zero_shot_model(chunk: int | None) -> None:
    features, _ = images()
    zero_shot = cosines(features, sentences(NAMES, task().templates)).softmax(1)
    conflicts = 0
    for seed in range(6):
        targets = zero_shot.argmin(1) if seed % 2 else zero_shot.argmax(1)
        head = head_of("prograd", chunk=chunk)
        head.context.data += 0.5 * torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
        step = objective("prograd", head)
        step.gradient.start(dict(head.named_parameters()))
        step.backward(step(features, targets))
        context = head.context.detach().clone().requires_grad_()
        logits = cosines(features, text_by_open_clip(NAMES, context.expand(3, 3, 16)))
        (own,) = torch.autograd.grad(F.cross_entropy(logits, targets), context, retain_graph=True)
        (guide,) = torch.autograd.grad(-(zero_shot * logits.log_softmax(1)).sum(1).mean(), context)
        product = float((own * guide).sum())
        expected = own - product / float((guide**2).sum()) * guide if product < 0 else own
        torch.testing.assert_close(head.context.grad, expected, rtol=0, atol=1e-6)
        conflicts += product < 0
    assert 0 < conflicts < 6


@pytest.mark.parametrize("names", ["base", "novel", "external"])
@pytest.mark.parametrize(("target", "count"), [("template", 1), ("ensemble", 2)])
def test_an_anchor_of_a_recipe(names: str, target: str, count: int) -> None:
    on = task(novel_names=NOVEL)
    head = head_of(on=on)
    settings = {"names": names, "target": target, "distance": "l1", "weight": 2.0, "external": 3}
    anchor = anchor_for(settings, head, on)
    features, targets = images()
    loss = catalogue.LOSSES.get("cross_entropy").load()(LongTail(COUNTS))
    frozen = on.encoder.text_features(NAMES, on.templates)
    with_it = Objective(head, loss, [anchor], None, frozen)(features, targets)
    added = (with_it - Objective(head, loss, [], None, frozen)(features, targets)) / 2.0
    others = {"base": NAMES, "novel": NOVEL, "external": external_names(head, on, 3)}[names]
    text = text_by_open_clip(others, head.context.expand(len(others), 3, 16))
    expected = (text - sentences(others, on.templates[:count])).abs().sum() / len(others)
    assert float(added.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)


def test_external_names_are_others_short_enough_and_the_seeds_own() -> None:
    on = task(class_names=("goldfish", "tench"))
    head = head_of(on=on)
    found = external_names(head, on, 100)
    assert len(set(found)) == 100
    assert not {"goldfish", "tench"} & set(found)
    assert found == external_names(head, on, 100) != external_names(head, task(seed=1), 100)
    head.prompted.for_names(found).layout(3)  # refuses what is too long
    with pytest.raises(InputError, match="`external`.*at most"):
        external_names(head, on, 5000)


# -- every loss ------------------------------------------------------------------------------------------------------

SPECIAL_HEADS = {
    "sade": "its three losses are for three experts",
    "etf_dot_regression": "it is for products with fixed prototypes, without a scale",
}


@pytest.mark.parametrize("name", catalogue.LOSSES.names())
def test_every_loss_trains_a_prompt(name: str) -> None:
    if name in SPECIAL_HEADS:
        pytest.skip(SPECIAL_HEADS[name])
    build = catalogue.LOSSES.get(name).load()
    known = catalogue.LOSSES.get(name).settings()
    settings = {"head_scale": encoder().logit_scale} if "head_scale" in known else {}
    head = head_of()
    step = objective("coop", head, build(LongTail(COUNTS), **settings).double())
    step.on_epoch(0, 2)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    features, targets = images(8)
    before = head.context.detach().clone()
    step.backward(step(features, targets))
    optimizer.step()
    assert bool(head.context.isfinite().all())
    assert float((head.context - before).detach().abs().max()) > 1e-7


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "settings", "words"),
    [
        ({"class_names": ()}, {}, "at least one class to train on, got none"),
        ({"class_names": ("tea_cup", "cat", "tea cup")}, {}, "got 'tea cup' for class 0 and class 2"),
        ({}, {"n_ctx": 12}, r"at most 16 tokens .*got 22 for class 2"),
        ({"kind": "class_token"}, {}, "'embedding', got 'class_token'"),
        ({"encoder": object()}, {}, "has none; choose an open_clip encoder"),
    ],
    ids=["no classes", "a name twice", "too long", "another space", "no text tower"],
)
@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd"])
def test_bad_input_is_refused_in_words(name: str, changes: Any, settings: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        head_of(name, task(**changes), **settings)


def test_anchors_without_names_or_text_are_refused_in_words() -> None:
    with pytest.raises(InputError, match="never trained, got none"):
        anchor_for({"names": "novel"}, head_of(), task())
    with pytest.raises(InputError, match="needs a head that learns text"):
        anchor_for({"names": "base"}, Head(), task())


# -- in a recipe -----------------------------------------------------------------------------------------------------

PROMPTED = {"head": "text", "training.epochs": 2, "training.batch_size": 16}


def tuned(name: str, **settings: Any) -> dict[str, Any]:
    return PROMPTED | {"tuning": {"name": "prompt", "method": name, "n_ctx": 2, "init": None, "views": 1} | settings}


@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd", "ivlp", "maple", "promptsrc"])
@pytest.mark.parametrize("names", ["base", "novel", "external"])
def test_a_recipe_s_anchor_holds_any_learned_text(recipe: dict[str, Any], name: str, names: str) -> None:
    anchor = {"name": "text_anchor", "names": names, "external": 3}
    shown = {"tuning": {"name": "prompt", "method": name, "n_ctx": 2, "init": None}, "training.epochs": 1}
    classes = {"data.classes": "base" if names == "novel" else "all"}
    result = run(recipe, PROMPTED | shown | classes | {"balancing.regularizers": [anchor]})
    assert np.isfinite(result.scores["overall"])
    said = "text_anchor" + " (novel names: label-space transductive)" * (names == "novel")
    assert result.record["identity"]["balancing"] == f"balanced_softmax + {said}"


@pytest.mark.parametrize("name", ["coop", "vpt"])
def test_a_loss_on_cosines_must_know_the_scale_of_a_prompt(recipe: dict[str, Any], name: str) -> None:
    change = {"tuning": {"name": "prompt", "method": name}, "head": "text", "training.epochs": 1}
    with pytest.raises(InputError, match=r"`balancing.loss.head_scale` must be the encoder's logit scale, 14\.29"):
        run(recipe, change | {"balancing.loss": {"name": "ldam", "head_scale": 25.0}})
    run(recipe, change | {"balancing.loss": {"name": "ldam", "head_scale": 14.2857}})


@pytest.mark.parametrize("name", ["coop", "cocoop", "kgcoop", "prograd"])
def test_a_recipe_trains_and_saves_the_prompt(recipe: dict[str, Any], name: str) -> None:
    result = run(recipe, tuned(name))
    assert (result.path / "result.json").is_file()
    losses = [json.loads(line)["loss"] for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert all(np.isfinite(losses))
    head = head_of(name, n_ctx=2, on=task(class_names=("a", "b", "c", "d"))).float()
    load_weights(Path(result.path) / "head.safetensors", head)
    assert result.record["cost"]["trainable_parameters"] == sum(p.numel() for p in head.parameters())


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "head.safetensors")


SUBSPACE = {"name": "subspace", "keep": 3, "rank": 1}


@pytest.mark.parametrize(
    ("name", "gradient"), [("coop", SUBSPACE), ("cocoop", None), ("prograd", None)], ids=["subpt", "cocoop", "prograd"]
)
def test_a_killed_run_ends_like_one_that_ran_through(
    recipe: dict[str, Any], name: str, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = tuned(name) | {"training.epochs": 4, "training.checkpoint_seconds": 0, "balancing.gradient": gradient}
    through = run(recipe, change)
    wanted = weights(through.path)
    shutil.rmtree(through.path)
    epoch = InstanceSampler.epoch

    def stop(self: InstanceSampler, number: int, epochs: int) -> Tensor:
        if number == 3:  # the first pass keeps three epochs, and ends before
            raise KeyboardInterrupt
        return epoch(self, number, epochs)

    monkeypatch.setattr(InstanceSampler, "epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, change)
    monkeypatch.setattr(InstanceSampler, "epoch", epoch)
    assert (through.path / "checkpoint.pt").is_file()
    found = weights(run(recipe, change).path)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_subpt_may_reuse_the_first_pass_of_a_finished_run(recipe: dict[str, Any]) -> None:
    change = tuned("coop") | {"training.epochs": 4}
    first = run(recipe, change | {"balancing.gradient": SUBSPACE})
    assert len(list((first.path / "first_pass").glob("epoch_*.safetensors"))) == 3
    second = run(recipe, change | {"balancing.gradient": SUBSPACE | {"reuse": str(first.path)}})
    assert not (second.path / "first_pass").exists()
    assert torch.equal(weights(first.path)["context"], weights(second.path)["context"])
    plain = weights(run(recipe, change).path)
    assert not torch.equal(weights(first.path)["context"], plain["context"])


@pytest.mark.parametrize("name", ["coop", "cocoop"])
def test_a_blank_head_with_the_saved_weights_says_what_the_run_said(recipe: dict[str, Any], name: str) -> None:
    """What `predict` does, with the images of the test split."""
    result = run(recipe, tuned(name))
    names = result.record["classes"]["names"]
    net = create_encoder(recipe["encoder"]["name"])
    on = task(encoder=net, class_names=names)
    torch.manual_seed(99)  # not the run's
    head = method(name, n_ctx=2, init=None).head(on, _no_plain_head)
    load_weights(result.path / "head.safetensors", head)
    data = create_dataset(**recipe["data"])
    source = ImageSource(data.splits["test"], net, "embedding", [net.preprocessing], torch.device("cpu"))
    with (result.path / "predictions.csv").open() as stream:
        said = [row["predicted"] for row in csv.DictReader(stream)]
    assert [names[label] for label in predict(head, source).predicted] == said
