"""PromptSRC: its terms in NumPy, and its average over the epochs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imbalance_vlm import InputError
from imbalance_vlm.components import catalogue
from imbalance_vlm.encoders.sources import FeatureSource
from imbalance_vlm.training.loop import train
from imbalance_vlm.training.optimizers import sgd
from imbalance_vlm.training.settings import TrainingSettings
from imbalance_vlm.tuning.prompt.promptsrc import PromptSRC, PromptSRCHead, gaussian_weights
from tests.tuning.prompt.vision_models import (
    NAMES,
    TOKENIZER,
    batch,
    context_of,
    make,
    model,
    objective_of,
    slow_pass,
    train_steps,
)


def test_gaussian_weights_are_normalised_densities() -> None:
    for epochs, mean, std in ((20, 15.0, 1.0), (50, 30.0, 30.0), (20, 6.0, 10.0)):
        density = [
            math.exp(-0.5 * ((e - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)) for e in range(1, epochs + 1)
        ]
        weights = gaussian_weights(epochs, mean, std)
        np.testing.assert_allclose(weights, np.array(density) / sum(density), rtol=1e-12)
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
    assert gaussian_weights(3, 500.0, 1.0).tolist() == pytest.approx([0, 0, 1])  # where the densities are all 0


def mean_of_sixty(templates: list[str]) -> Tensor:
    """(C, d) mean of features of any length."""
    module = model()
    sentences = [TOKENIZER([template.format(name.replace("_", " ")) for name in NAMES]) for template in templates]
    return torch.stack([module.encode_text(ids) for ids in sentences]).mean(0)


@pytest.mark.parametrize("sentences", ["openai_60", "dataset"])
def test_promptsrc_adds_its_three_terms(sentences: str) -> None:
    """25 mean |t - t'| + 10 mean |f - f'| + KL(q', q) / C, in loops, beside the loss."""
    context = context_of()
    tuning, head = make("promptsrc", context, sentences=sentences)
    objective = objective_of(tuning, head, context)
    train_steps(objective, tuning, 2)
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
    sixty = [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:60]]
    own = context.encoder.text_features(NAMES, context.templates)
    t_frozen = unit(mean_of_sixty(sixty) if sentences == "openai_60" else own)

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


def test_weights_of_zero_leave_the_plain_loss() -> None:
    context = context_of()
    plain, head = make("promptsrc", context, text=0.0, image=0.0, logits=0.0)
    value = objective_of(plain, head, context).train()(*batch())
    plain_loss = F.cross_entropy(head(batch()[0]), batch()[1])
    assert float(value.detach()) == pytest.approx(float(plain_loss.detach()), rel=1e-5)


def pixel_run(folder: Path) -> tuple[list[Tensor], PromptSRCHead]:
    """Four epochs of promptsrc in the training loop: the trained values after each, and the head at the end."""
    context = context_of(epochs=4)
    tuning, head = make("promptsrc", context, mean=2.0, std=1.0)
    objective = objective_of(tuning, head, context)
    pixels, labels = batch(8)
    source = FeatureSource([pixels.numpy()], labels.numpy(), torch.device("cpu"))
    optimizer = sgd(tuning.parameters(head), lr=0.05)
    schedule = catalogue.SCHEDULES.get("constant").load()(4, 2)
    sampler = catalogue.SAMPLERS.get("instance").load()(source.labels, 0)
    trained: list[Tensor] = []

    def after(epoch: int) -> dict[str, float]:
        trained.append(nn.utils.parameters_to_vector(head.parameters()).detach().clone())
        tuning.after_epoch(head, epoch)
        return {}

    settings = TrainingSettings(epochs=4, batch_size=4, checkpoint_seconds=0)
    train(objective, source, sampler, optimizer, schedule, folder, after, settings=settings)
    before = nn.utils.parameters_to_vector(head.parameters()).detach().clone()
    assert torch.equal(before, trained[-1])
    tuning.finish(head)
    return trained, head


def test_the_result_is_the_average_over_the_epochs(tmp_path: Path) -> None:
    trained, head = pixel_run(tmp_path)
    density = [math.exp(-0.5 * (e - 2.0) ** 2) for e in (1, 2, 3, 4)]
    wanted = sum(w / sum(density) * v for w, v in zip(density, trained, strict=True))
    averaged = nn.utils.parameters_to_vector(head.parameters()).detach()
    torch.testing.assert_close(averaged, wanted)
    assert not torch.allclose(averaged, trained[-1], atol=1e-4)


def test_the_terms_need_the_head_and_the_whole_batch() -> None:
    with pytest.raises(InputError, match=r"call head\(\) first"):
        PromptSRC().regularizers(context_of())
    tuning, head = make("promptsrc")
    objective = objective_of(tuning, head)
    before = head.context.detach().clone()
    tuning.after_epoch(head, 1)
    tuning.finish(head)  # one epoch of four
    assert torch.equal(head.context, before)
    embeddings, logits = objective.train().outputs(batch()[0])
    with pytest.raises(InputError, match="all 3 images of a batch, and has 5"):
        objective.value(embeddings[:3], logits[:3], batch()[1][:3])
    objective.frozen_text = None  # the method has its own
    objective(*batch())
