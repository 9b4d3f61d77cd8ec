"""What a package of plug-ins must be able to do, beside our own components: recipes that work and that do not."""

from __future__ import annotations

import json
import re
from typing import Any

Recipe = dict[str, Any]

COMPONENTS = {
    "poly1": ("losses", "epsilon: a number >= 0 (default 1.0). weight of the second term; 0 is balanced softmax."),
    "center": ("losses", "rate: a number > 0 and <= 1 (default 0.5). how far a center moves to the mean of a batch."),
    "repeat_factor": ("samplers", "threshold: a number > 0 and <= 1 (default 0.2)."),
    "low_rank": ("heads", "rank: a whole number >= 1 (default 8). r, the width of the embedding."),
    "variance": ("regularizers", "gamma: a number > 0 (default 1.0)."),
    "text_uniformity": ("regularizers", "sharpness: a number > 0 (default 2.0). t."),
    "centralised": ("gradients", "settings: none"),
    "scaled_bias": (
        "second_stages",
        "factor: a number >= 0 or null (default null). null chooses 1, 0.5 or 0 on the",
    ),
    "many_penalty": ("post_hoc", "penalty: a number >= 0 or null (default null)."),
    "noisy_coop": ("prompts", "n_ctx: a whole number >= 1 or null (default null). number of context tokens"),
    "norm_scale": ("peft", "last: a whole number >= 1 (default 2). how many of them."),
    "patches": ("encoders", "weights: a path (required). a safetensors file"),
    "grey": ("encoders", "features: 'embedding' or 'class_token' (default 'embedding')."),
    "indexed": ("datasets", "index: a string (default 'index.tsv'). name of the index in it."),
    "top_k": ("evaluators", "k: a whole number >= 1 (default 2). number of guesses."),
}
"""Kind of each component, and a part of what `show` prints of its settings."""


def merged(recipe: Recipe, **changes: Any) -> Recipe:
    """A recipe with some of its dotted keys changed ("__" stands for the dot)."""
    copy: Recipe = json.loads(json.dumps(recipe))
    for key, value in changes.items():
        *path, last = key.split("__")
        section = copy
        for part in path:
            section = section.setdefault(part, {})
        section[last] = value
    return copy


def swapped(recipe: Recipe, name: str, ours: str) -> Recipe:
    """The recipe with a component of ours in the place of another package's."""
    copy: Recipe = json.loads(re.sub(rf'"{name}"', f'"{ours}"', json.dumps(recipe)))
    return copy


def plain(data: Any, encoder: Any) -> Recipe:
    return {
        "name": "probe",
        "data": data,
        "encoder": encoder,
        "tuning": "linear_probe",
        "training": {"epochs": 2, "batch_size": 32, "checkpoint_seconds": 0},
        "evaluation": {"groups": {"many": 12, "few": 6}},
    }


PROBE = plain({"name": "folder", "root": "images"}, "mini-clip")
PROMPT = merged(PROBE, tuning={"name": "prompt"}, head="text")

REFUSED: dict[str, tuple[Recipe, str, str]] = {
    "a loss on embeddings that are fixed": (merged(PROBE, balancing__loss="center"), "center", "paco"),
    "a loss on embeddings under a prompt": (merged(PROMPT, balancing__loss="center"), "center", "paco"),
    "a regularizer of text that is not learned": (
        merged(PROBE, balancing__regularizers="text_uniformity"),
        "text_uniformity",
        "text_anchor",
    ),
    "a regularizer of text under tuning of the tower": (
        merged(PROBE, tuning={"name": "peft"}, balancing__regularizers="text_uniformity"),
        "text_uniformity",
        "text_anchor",
    ),
    "a second stage without training": (
        merged(PROBE, tuning="zero_shot", head="text", balancing__second_stage="scaled_bias"),
        "scaled_bias",
        "crt",
    ),
    "a head without names in zero-shot": (merged(PROBE, tuning="zero_shot", head="low_rank"), "low_rank", "linear"),
    "a head without names under a prompt": (merged(PROMPT, head="low_rank"), "low_rank", "linear"),
    "a head that starts at random, averaged with its start": (
        merged(PROBE, head="low_rank", training__interpolation=0.5),
        "low_rank",
        "linear",
    ),
    "a head without cosines": (merged(PROBE, head="low_rank", balancing__loss="ldam"), "low_rank", "linear"),
    "a head without experts": (merged(PROBE, head="low_rank", balancing__loss="sade"), "low_rank", "linear"),
    "a prompt method with a linear head": (
        merged(PROMPT, tuning__method="noisy_coop", head="linear"),
        "noisy_coop",
        "coop",
    ),
    "a prompt per class on new classes": (
        merged(PROMPT, tuning={"name": "prompt", "method": "noisy_coop", "csc": True}, data__classes="base")
        | {"evaluation": {"base_to_novel": True}},
        "noisy_coop",
        "coop",
    ),
    "a tuned tower on new classes": (
        merged(PROBE, tuning={"name": "peft", "method": "norm_scale"}, data__classes="base")
        | {"evaluation": {"base_to_novel": True}},
        "norm_scale",
        "layernorm",
    ),
    "a dataset with all classes, for new ones": (
        merged(PROMPT, data={"name": "indexed", "root": "images"}) | {"evaluation": {"base_to_novel": True}},
        "indexed",
        "folder",
    ),
    "a dataset without its required setting": (merged(PROBE, data="indexed"), "indexed", "folder"),
    "an evaluator with a list for its settings": (
        merged(PROBE, evaluation__top_k=[1]),
        "top_k",
        "geometry",
    ),
}
"""Recipes that cannot work, with a component of the package and the one of ours whose refusal must read the same."""

REFUSED_ENCODERS = {
    "zero-shot": {"tuning": "zero_shot", "head": "text"},
    "a prompt": {"tuning": {"name": "prompt", "method": "noisy_coop"}, "head": "text"},
    "a start from text": {"head": {"name": "cosine", "init": "text"}},
}
"""What an encoder without a text tower cannot do."""

REFUSED_RUNS = {
    "second stage": ("scaled_bias", "tau_norm"),
    "correction": ("many_penalty", "logit_adjustment"),
    "tower": ("norm_scale", "layernorm"),
}
"""Components that the data or the tower of a run do not suit, and those of ours whose refusal must read the same."""

OUT_OF_RANGE: dict[str, tuple[Recipe, str]] = {
    "loss": (
        merged(PROBE, balancing__loss={"name": "poly1", "epsilon": -1}),
        "balancing.loss.epsilon: must be a number >= 0, got -1",
    ),
    "head": (merged(PROBE, head={"name": "low_rank", "rank": 0}), "head.rank: must be a whole number >= 1, got 0"),
    "evaluator": (merged(PROBE, evaluation__top_k={"k": 0}), "evaluation.top_k.k: must be a whole number >= 1, got 0"),
    "name": (
        merged(PROBE, balancing__sampler="repeat_facter"),
        "balancing.sampler.name: unknown sampler 'repeat_facter'. Did you mean 'repeat_factor'?",
    ),
    "required": (merged(PROBE, encoder="patches"), "encoder.weights: missing; give a value"),
    "key": (
        merged(PROBE, encoder={"name": "grey:mini-clip", "feature": "embedding"}),
        "encoder.feature: unknown key. Did you mean 'features'?",
    ),
    "capability": (
        merged(PROBE, encoder={"name": "patches", "weights": "w"}, head="decoder"),
        "head: head 'decoder' needs an encoder that returns all image tokens; got encoder 'patches'",
    ),
    "embedding": (
        merged(PROBE, balancing__regularizers="variance"),
        "balancing.regularizers.0: regularizer 'variance' needs an embedding that training changes: set head.adapter "
        "to a width such as 128, use head 'decoder', or tune the image tower; got head 'linear'",
    ),
}

ACCEPTED: dict[str, Recipe] = {
    "our regularizer on their embedding": merged(
        PROBE, head="low_rank", balancing__regularizers="prototype_contrastive"
    ),
    "their regularizer on our embedding": merged(
        PROBE, head={"name": "linear", "adapter": 8}, balancing__regularizers="variance"
    ),
    "our loss on their embedding": merged(PROBE, head="low_rank", balancing__loss="paco"),
    "their loss on their tuned tower": merged(
        PROBE, tuning={"name": "peft", "method": "norm_scale"}, balancing__loss="center"
    ),
    "our regularizer on their text": merged(PROMPT, tuning__method="noisy_coop", balancing__regularizers="text_anchor"),
    "their regularizer on our text": merged(PROMPT, tuning__method="coop", balancing__regularizers="text_uniformity"),
    "our gradient transform on their text": merged(PROMPT, tuning__method="noisy_coop", balancing__gradient="prograd"),
    "a column of theirs in a study": merged(PROBE, evaluation__top_k={"k": 3})
    | {"grid": {"seeds": [0, 1]}, "table": {"columns": ["recipe", "top_3"]}},
    "a training setting that takes no part in zero-shot": merged(
        PROBE, tuning="zero_shot", head="text", balancing__loss="center", balancing__gradient="centralised"
    ),
}
