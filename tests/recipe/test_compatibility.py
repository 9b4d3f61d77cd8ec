"""Which components go together: one rule, and a message that says what is needed and what the recipe has."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.recipe.problems import RecipeError
from imbalance_vlm.recipe.study import plan

BASE: dict[str, Any] = {
    "name": "r",
    "data": {"name": "folder", "root": "images"},
    "encoder": {"name": "ViT-B-16", "pretrained": "openai"},
    "tuning": "linear_probe",
}
COSINE = {"name": "cosine", "init": "class_mean", "scale": 16}
COOP = {"tuning": {"name": "prompt", "method": "coop"}, "head": "text"}
ANCHOR = {"balancing.regularizers": ["text_anchor"]}

REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "zero-shot with a head that is not trained": (
        {"tuning": "zero_shot", "head": "linear"},
        ["tuning: tuning 'zero_shot' needs a head that classifies by the class names", "got head 'linear'"],
    ),
    "a linear probe of a head that trains nothing": (
        {"head": "text"},
        ["tuning: tuning 'linear_probe' needs a head with trained parameters", "init: text", "got head 'text'"],
    ),
    "a text start without a text tower": (
        {"encoder": "timm:resnet18", "head": {"name": "linear", "init": "text"}},
        ["head: head 'linear' needs an encoder with a text tower", "got encoder 'timm:resnet18'"],
    ),
    "text features in another space": (
        {"tuning": "zero_shot", "head": "text", "encoder": {"name": "ViT-B-16", "features": "class_token"}},
        ["head: head 'text' needs image features in the space of the text features", "encoder.features"],
    ),
    "a loss on cosines with another head": (
        {"balancing.loss": "ldam"},
        ["balancing.loss: loss 'ldam' needs a head whose logits are cosines", "got head 'linear'"],
    ),
    "a loss on cosines whose scale is trained": (
        {"balancing.loss": "ldam", "head": COSINE | {"learn_scale": True}},
        ["balancing.loss: loss 'ldam' needs", "learn_scale false"],
    ),
    "sade without experts": ({"balancing.loss": "sade"}, ["balancing.loss: loss 'sade' needs a head with several"]),
    "experts without sade": ({"head": "experts"}, ["head: head 'experts' needs a loss that trains several experts"]),
    "aggregation without experts": (
        {"balancing.second_stage": "expert_aggregation"},
        ["balancing.second_stage: second stage 'expert_aggregation' needs a head with several experts"],
    ),
    "dot-regression on scaled prototypes": (
        {"balancing.loss": "etf_dot_regression", "head": "prototype"},
        ["balancing.loss: loss 'etf_dot_regression' needs a head of unscaled products", "scale: 1"],
    ),
    "raw products with another loss": (
        {"head": {"name": "prototype", "normalise": False}},
        ["head: head 'prototype' needs a loss on unscaled products"],
    ),
    "a contrast of embeddings that nothing changes": (
        {"balancing.loss": "paco"},
        ["balancing.loss: loss 'paco' needs an embedding that training changes", "head.adapter"],
    ),
    "a term on embeddings that nothing changes": (
        {"balancing.regularizers": ["prototype_contrastive"]},
        ["balancing.regularizers.0: regularizer 'prototype_contrastive' needs an embedding", "or text features that"],
    ),
    "a term on text that nothing changes": (
        ANCHOR,
        ["balancing.regularizers.0: regularizer 'text_anchor' needs text features that training changes"],
    ),
    "a gradient that compares texts": (
        {"balancing.gradient": "prograd"},
        ["balancing.gradient: gradient transform 'prograd' needs text features that training changes"],
    ),
    "prompts with another head": (
        COOP | {"head": "linear"},
        ["tuning: tuning 'coop' needs a head that classifies by the class names", "got head 'linear'"],
    ),
    "a second stage without training": (
        {"tuning": "zero_shot", "head": "text", "balancing.second_stage": "ncm"},
        ["balancing.second_stage: second stage 'ncm' needs a tuning that trains", "got tuning 'zero_shot'"],
    ),
    "a regularizer without training": (
        {"tuning": "zero_shot", "head": "text", **ANCHOR},
        ["balancing.regularizers.0: regularizer 'text_anchor' needs a tuning that trains"],
    ),
    "new classes without a dataset that leaves some out": (
        COOP | {"evaluation.base_to_novel": True},
        ["evaluation.base_to_novel: evaluator 'base_to_novel' needs a dataset that holds classes out"],
    ),
    "new classes with a classifier that cannot read them": (
        {"data.classes": "base", "evaluation.base_to_novel": True},
        [
            "evaluation.base_to_novel: evaluator 'base_to_novel' needs a classifier that can read the "
            "names of new classes"
        ],
    ),
    "new classes with a context per class": (
        COOP | {"tuning.csc": True, "data.classes": "base", "evaluation.base_to_novel": True},
        ["evaluation.base_to_novel", "csc false"],
    ),
    "new classes after a correction": (
        COOP | {"data.classes": "base", "evaluation.base_to_novel": True, "balancing.post_hoc": "prior_shift"},
        ["evaluation.base_to_novel: tests new classes, and balancing.post_hoc is fitted to the trained classes only"],
    ),
    "interpolation from a random start": (
        {"training.interpolation": 0.5},
        ["training.interpolation", "needs a head that does not start at random"],
    ),
    "divergence from a random start": (
        {"tuning": {"name": "full", "kl": 1.0}},
        ["tuning: tuning 'full' needs a head that does not start at random"],
    ),
    "sharding what is not trained": (
        {"training.shard": True},
        ["training.shard", "needs a tuning that trains the image tower", "got tuning 'linear_probe'"],
    ),
    "averages of a sharded tower": (
        {"tuning": "full", "training.shard": True, "training.ema": 0.9},
        ["training.shard: cannot average sharded weights"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_components_that_cannot_be_combined_are_refused(case: str) -> None:
    overrides, words = REFUSED[case]
    with pytest.raises(RecipeError) as error:
        plan(BASE, overrides)
    (problem,) = map(str, error.value.problems)
    assert all(word in problem for word in words), problem


@pytest.mark.parametrize(
    "overrides",
    [
        {"balancing.loss": "ldam", "head": COSINE},
        {"balancing.loss": {"name": "ldam", "head_scale": 16}, "head": COSINE},
        {"balancing.loss": "sade", "head": "experts", "balancing.second_stage": "expert_aggregation"},
        {"balancing.loss": "etf_dot_regression", "head": {"name": "prototype", "scale": 1}},
        {"balancing.loss": "paco", "head": COSINE | {"adapter": 8}},
        {"balancing.loss": "paco", "tuning": {"name": "peft", "method": "lora"}},
        COOP | ANCHOR,
        COOP | {"balancing.loss": "ldam"},
        COOP | {"balancing.regularizers": ["prototype_contrastive"]},
        {"tuning": "zero_shot", "head": "text", "balancing.loss": "paco", "balancing.gradient": "prograd"},
        {"tuning": "zero_shot", "head": "text", "balancing.post_hoc": "temperature"},
        {"encoder": "timm:resnet18", "head": COSINE},
    ],
)
def test_components_that_can_be_combined_are_accepted(overrides: dict[str, Any]) -> None:
    plan(BASE, overrides)


def test_an_image_backbone_lacks_text_for_head_and_tuning() -> None:
    with pytest.raises(RecipeError) as error:
        plan(BASE, {"encoder": "timm:resnet18", "tuning": {"name": "prompt", "method": "coop"}, "head": "text"})
    lines = [str(problem) for problem in error.value.problems]
    assert any("tuning 'coop' needs an encoder with a text tower" in line for line in lines)
    assert any("head 'text' needs an encoder with a text tower" in line for line in lines)


@pytest.mark.parametrize(
    ("paper", "message"),
    [({"overal": 73.2}, "unknown score. Did you mean 'overall'?"), ({"few": "73*"}, "must be a number, got '73*'")],
)
def test_a_published_row_holds_scores(paper: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        plan(BASE | {"paper": paper})
    assert message in str(error.value)
