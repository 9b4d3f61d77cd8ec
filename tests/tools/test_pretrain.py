"""`tools/pretrain.py`: the loss against an oracle, bit-equal resuming, the export, and several processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools import pretrain  # noqa: E402
from tools.pretraining import data  # noqa: E402
from tools.pretraining import model as modeling  # noqa: E402
from tools.pretraining.evaluate import TestSet, zero_shot  # noqa: E402

CAPTIONS = ["arrow left", "arrow right", "home", "heart", "credit card", "sun"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """54 images of noise around one pattern per caption."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    ids = np.arange(54) % len(CAPTIONS)
    patterns = rng.integers(0, 200, (len(CAPTIONS), 4, 4, 3)).repeat(8, 1).repeat(8, 2)
    images = (patterns[ids] + rng.integers(0, 55, (54, 32, 32, 3))).astype(np.uint8)
    np.save(folder / "pretrain_images.npy", images)
    rows = [f"{i}\tset\tfamily\ticon-{i}\t{CAPTIONS[c]}" for i, c in enumerate(ids)]
    (folder / "pretrain.tsv").write_text("\n".join(["row\tset\tfamily\ticon\tcaption", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    content = modeling.read_config(ROOT / "tools" / "pretraining" / "mini_clip.json")
    content["model_cfg"]["embed_dim"] = 16
    content["model_cfg"]["vision_cfg"].update(width=16, layers=2, head_width=8)
    content["model_cfg"]["text_cfg"].update(width=16, layers=1, heads=2, vocab_size=256 * 2 + 500 + 2)
    path.write_text(json.dumps(content | {"merges": 500}))
    return path


def start(corpus: Path, config: Path, folder: Path, **recipe: Any) -> pretrain.Pretraining:
    content = modeling.read_config(config)
    bpe = modeling.write_vocabulary(folder / modeling.BPE_NAME, content["merges"])
    defaults: dict[str, Any] = {"samples": 64, "batch": 8, "warmup": 16, "lr": 1e-3, "precision": "fp32"}
    return pretrain.Pretraining(
        pretrain.Recipe(**(defaults | recipe)), content, data.read_corpus(corpus), bpe, pretrain.Devices()
    )


def oracle_loss(logits: np.ndarray, captions: list[int]) -> float:
    total, n = 0.0, len(captions)
    for matrix in (logits, logits.T):
        for i in range(n):
            positives = [j for j in range(n) if captions[j] == captions[i]]
            log_sum = np.log(sum(np.exp(value) for value in matrix[i]))
            total += sum(log_sum - matrix[i, j] for j in positives) / len(positives) / n / 2
    return total


@pytest.mark.parametrize("captions", [[0, 1, 2, 3], [0, 1, 0, 0], [2, 2, 2, 2]])
def test_equal_captions_are_positives(captions: list[int]) -> None:
    logits = np.random.default_rng(1).normal(size=(4, 4)) * 3
    got = modeling.multi_positive_loss(torch.from_numpy(logits), torch.tensor(captions))
    assert got.item() == pytest.approx(oracle_loss(logits, captions), rel=1e-12)


def test_duplicates_do_not_repel() -> None:
    logits = torch.full((3, 3), -20.0)
    logits[:2, :2], logits[2, 2] = 20.0, 20.0  # the first two pairs are alike
    logits.requires_grad_()
    (alike,) = torch.autograd.grad(modeling.multi_positive_loss(logits, torch.tensor([0, 0, 1])), logits)
    assert alike.abs().max() < 1e-6
    (distinct,) = torch.autograd.grad(modeling.multi_positive_loss(logits, torch.tensor([0, 2, 1])), logits)
    assert distinct[0, 1] > 0.1


def test_sizes_are_nested(corpus: Path) -> None:
    full, third, ninth = (data.read_corpus(corpus, divisor) for divisor in (1, 3, 9))
    assert [len(c) for c in (full, third, ninth)] == [54, 18, 6]
    assert np.array_equal(full.images[:18], third.images)
    names = [[c.captions[i] for i in c.caption_ids] for c in (full, third, ninth)]
    assert names[0][:18] == names[1]
    assert names[1][:6] == names[2]
    with pytest.raises(ValueError, match="at least one"):
        data.read_corpus(corpus, 55)


def test_order_is_permutations_end_to_end() -> None:
    order = data.Order(rows=10, batch=4, seed=3)
    seen = np.concatenate([order(step) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:])
    assert np.array_equal(data.Order(rows=10, batch=4, seed=3)(4), seen[16:])


def test_captioner_equals_the_tokenizer(corpus: Path, config: Path, tmp_path: Path) -> None:
    run = start(corpus, config, tmp_path)
    templates = ["{}", "an icon of {}", "a {} icon"]
    captioner = data.Captioner(run.tokenizer, CAPTIONS, templates, 16)
    for t, template in enumerate(templates):
        got = captioner(np.arange(6), np.full(6, t))
        expected = run.tokenizer([template.format(caption) for caption in CAPTIONS])
        assert torch.equal(got, expected[:, : got.shape[1]])
        assert not expected[:, got.shape[1] :].any()
        with torch.no_grad(), modeling.plain_attention():
            short = modeling.text_features(run.model, got)
            assert torch.allclose(short, run.model.encode_text(expected, normalize=True), atol=1e-6)


def test_augmentation_never_mirrors_and_keeps_range() -> None:
    x = torch.ones(64, 3, 32, 32)
    x[:, :, 8:24, 4:10] = 0.0  # a bar on the left stays on the left
    style = data.Style(recolour=0.0)
    out = style(x, style.uniforms(0, 0, 64))
    assert (out[..., :16].mean((1, 2, 3)) < out[..., 16:].mean((1, 2, 3))).all()
    full = data.Style(stroke=1.0, recolour=1.0)
    out = full(x, full.uniforms(0, 0, 64))
    assert out.min() >= 0
    assert out.max() <= 1
    identity = data.Style(0, 0, 0, 0, 0)
    assert torch.allclose(identity(x, identity.uniforms(0, 0, 64)), x, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_killed_and_resumed_is_bit_equal(
    corpus: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    uninterrupted = start(corpus, config, tmp_path, optimizer=optimizer)
    pretrain.train(uninterrupted, tmp_path / "uninterrupted.pt", save_minutes=9)
    killed = start(corpus, config, tmp_path, optimizer=optimizer)
    advance, steps = killed.advance, 0

    def advance_until_killed() -> float:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return advance()

    monkeypatch.setattr(killed, "advance", advance_until_killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(killed, tmp_path / "killed.pt", save_minutes=0)
    resumed = start(corpus, config, tmp_path, optimizer=optimizer)
    pretrain.train(resumed, tmp_path / "killed.pt", save_minutes=9)
    assert resumed.step == 8
    for name, value in uninterrupted.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_checkpoint_of_another_recipe_is_refused(corpus: Path, config: Path, tmp_path: Path) -> None:
    run = start(corpus, config, tmp_path)
    run.advance()
    start(corpus, config, tmp_path, samples=128).load_state(run.state())  # a later end, before the decay
    with pytest.raises(ValueError, match="same recipe"):
        start(corpus, config, tmp_path, seed=1).load_state(run.state())
    while run.step < 7:
        run.advance()
    with pytest.raises(ValueError, match="before the decay"):
        start(corpus, config, tmp_path, samples=128).load_state(run.state())


def test_learns_and_exports_to_plain_open_clip(corpus: Path, config: Path, tmp_path: Path) -> None:
    run = start(corpus, config, tmp_path, samples=4800, batch=16, lr=1e-2, shift=0.0, recolour=0.0)
    pretrain.train(run, tmp_path / "run.pt", save_minutes=9)
    ids = run.corpus.caption_ids
    tests = TestSet(run.corpus.images, ids, run.corpus.captions, np.array([200, 50, 10, 50, 50, 50]))
    record = pretrain.finish(run, modeling.read_config(config), "icons-large", tmp_path, tests)
    scores = record["zero_shot"]["templates"]
    assert scores["top1"] > 90
    assert set(scores) == {"top1", "top5", "many", "medium", "few"}
    folder = f"local-dir:{tmp_path / 'icons-large'}"
    model, _, transform = open_clip.create_model_and_transforms(folder)
    model.eval()
    tokenizer = open_clip.get_tokenizer(folder, bpe_path=str(tmp_path / modeling.BPE_NAME))
    images = data.image_tensor(run.corpus.images, np.arange(8), torch.device("cpu"))
    inputs = (images - run.mean) / run.std
    from PIL import Image

    first = transform(Image.fromarray(run.corpus.images[0]))
    assert torch.allclose(first, inputs[0], atol=1e-5)
    with torch.no_grad():
        pairs = [
            (model.encode_image(inputs, normalize=True), modeling.image_features(run.model, inputs)),
            (model.encode_text(tokenizer(CAPTIONS), normalize=True), run_text(run, CAPTIONS)),
        ]
    for exported, trained in pairs:
        assert torch.allclose(exported, trained, atol=5e-3)
        assert (exported * trained).sum(-1).min() > 0.9999
    assert json.loads((tmp_path / "icons-large" / "pretraining.json").read_text())["samples_seen"] == 4800


def run_text(run: pretrain.Pretraining, captions: list[str]) -> torch.Tensor:
    return modeling.text_features(run.model, run.tokenizer(captions))


def test_zero_shot_counts_groups_by_training_images(corpus: Path, config: Path, tmp_path: Path) -> None:
    run = start(corpus, config, tmp_path)
    counts = np.full(6, 101)
    tests = TestSet(run.corpus.images, run.corpus.caption_ids, run.corpus.captions, counts)
    scores = zero_shot(run.model, tests, run.tokenizer, ["{}"], run.mean, run.std)
    assert set(scores) == {"top1", "top5", "many"}
    assert scores["many"] == scores["top1"]


def test_the_vocabulary_file_is_reproducible(tmp_path: Path) -> None:
    first, second = (modeling.write_vocabulary(tmp_path / name / "bpe.txt.gz", 500).read_bytes() for name in "ab")
    assert first == second
    assert modeling.tokenizer_at(tmp_path / "a" / "bpe.txt.gz", 16).vocab_size == 256 * 2 + 500 + 2


WORKER = """
import sys
from pathlib import Path

import torch

root, corpus, config, bpe, out = sys.argv[1:]
sys.path.insert(0, root)
from tools import pretrain
from tools.pretraining import data, model

torch.set_num_threads(1)
recipe = pretrain.Recipe(samples=64, batch=8, warmup=0, lr=1e-4, optimizer="adamw", precision="fp32")
content = model.read_config(Path(config))
devices = pretrain.find_devices()
run = pretrain.Pretraining(recipe, content, data.read_corpus(Path(corpus)), Path(bpe), devices)
run.loss(0).backward()
model.sum_gradients(list(run.model.parameters()), devices.world)
gradients = {name: p.grad.clone() for name, p in run.model.named_parameters()}
losses = [run.advance() for _ in range(8)]
torch.save({"world": devices.world, "losses": losses, "gradients": gradients}, f"{out}.{devices.rank}")
"""


@pytest.mark.slow
def test_two_processes_equal_one(corpus: Path, config: Path, tmp_path: Path) -> None:
    bpe = modeling.write_vocabulary(tmp_path / modeling.BPE_NAME, 500)
    results = {}
    for world in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", WORKER, *map(str, (ROOT, corpus, config, bpe, tmp_path / f"of{world}"))]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        shared |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        ranks = [
            subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(world)
        ]
        assert [process.wait(timeout=120) for process in ranks] == [0] * world
        results[world] = [torch.load(tmp_path / f"of{world}.{rank}", weights_only=True) for rank in range(world)]
    single, (first, second) = results[1][0], results[2]
    assert (single["world"], first["world"]) == (1, 2)
    assert first["losses"] == second["losses"] == pytest.approx(single["losses"], abs=1e-5)
    for name, gradient in single["gradients"].items():
        assert torch.allclose(first["gradients"][name], gradient, rtol=1e-3, atol=1e-5), name
