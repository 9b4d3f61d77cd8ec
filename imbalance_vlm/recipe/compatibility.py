"""Which components go together. Each rule looks at a complete recipe and says, in words, what cannot work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.catalogue import encoder_entry
from imbalance_vlm.errors import did_you_mean
from imbalance_vlm.evaluation.base import columns_of

_REMEDIES = {
    "text": "an encoder with a text tower: any open_clip model",
    "tokens": "an encoder that gives all image tokens",
}

Recipe = Mapping[str, Any]
Conflict = tuple[str, str]


def conflicts(recipe: Recipe) -> Iterator[Conflict]:
    """(key, message) for everything in the recipe that cannot work together."""
    rules = (
        _encoder_provides,
        _something_to_train,
        _same_space,
        _cosine_units,
        _experts,
        _dot_regression,
        _learned_embedding,
        _learned_text,
        _novel_classes,
        _after_training,
        _averages,
        _full_tuning,
        _sharded,
        _published,
    )
    for rule in rules:
        yield from rule(recipe)


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in ("name", "method")}


def _encoder_provides(recipe: Recipe) -> Iterator[Conflict]:
    """Head and tuning ask for towers that the encoder must have."""
    model = recipe["encoder"]["name"]
    provided = encoder_entry(model).provided(recipe["encoder"]) | {
        "training",
        "text.learned",
        "embedding.learned",
        "experts.loss",
        "products.loss",
        "names",
        "trained",
        "start",
        "cosines",
    }
    sections = [("tuning", catalogue.TUNINGS, recipe["tuning"]), ("head", catalogue.HEADS, recipe["head"])]
    sections += [
        (f"balancing.regularizers.{row}", catalogue.REGULARIZERS, one)
        for row, one in enumerate(recipe["balancing"]["regularizers"])
    ]
    for key, registry, section in sections:
        entry = registry.get(section["name"]).member(section)
        for capability in sorted(
            need for need in registry.get(section["name"]).needed(section) if not set(need.split("|")) & provided
        ):
            detail = next((f" with {key} 'text'" for key in ("init", "assign") if section.get(key) == "text"), "")
            asked = f"{registry.kind} '{entry.name}'{detail}"
            starts = key == "head" and capability == "text" and section.get("init") == "text"
            instead = "; or set head.init to 'class_mean'" if starts else ""
            yield key, f"{asked} needs {catalogue.CAPABILITIES[capability]}; encoder '{model}' has none{instead}"


def _something_to_train(recipe: Recipe) -> Iterator[Conflict]:
    """Zero-shot and the text head belong together: neither trains anything."""
    tuning, head = recipe["tuning"]["name"], recipe["head"]["name"]
    if tuning == "zero_shot" and head != "text":
        yield "head", f"tuning 'zero_shot' trains nothing, so the head must be 'text', got '{head}'"
    if tuning == "linear_probe" and head == "text":
        yield (
            "head",
            (
                "head 'text' has nothing to train; for a trained classifier that starts from the text features "
                "use {name: cosine, init: text}"
            ),
        )


def _same_space(recipe: Recipe) -> Iterator[Conflict]:
    """Text features live in the embedding space, not in the class token's."""
    if recipe["head"]["name"] == "text" and recipe["encoder"].get("features") == "class_token":
        yield "encoder.features", "head 'text' compares with text features: use features 'embedding'"


def _cosine_units(recipe: Recipe) -> Iterator[Conflict]:
    """A loss that works on cosines must know the scale that the head has put on them."""
    loss, head = recipe["balancing"]["loss"], recipe["head"]
    if "head_scale" not in loss or recipe["tuning"]["name"] in ("zero_shot", "prompt"):
        return  # a prompt's scale is the encoder's own, which is looked at when that is there
    if head["name"] != "cosine":
        yield "head", f"loss '{loss['name']}' works on cosines, so the head must be 'cosine', got '{head['name']}'"
    elif head["learn_scale"]:
        yield "head.learn_scale", f"loss '{loss['name']}' must know the scale of the cosines: use learn_scale false"
    elif head["scale"] != loss["head_scale"]:
        yield (
            "balancing.loss.head_scale",
            f"must equal head.scale, {head['scale']:g}, for cosines to be what they are, got {loss['head_scale']:g}",
        )


def _experts(recipe: Recipe) -> Iterator[Conflict]:
    """SADE's three losses are for three experts, and its aggregation weighs them."""
    loss, head, stage = recipe["balancing"]["loss"]["name"], recipe["head"]["name"], recipe["balancing"]["second_stage"]
    if recipe["tuning"]["name"] == "zero_shot":
        return
    if loss == "sade" and head != "experts":
        yield "head", f"loss 'sade' trains several experts, so the head must be 'experts', got '{head}'"
    if head == "experts" and loss != "sade":
        yield "balancing.loss", f"head 'experts' gives the logits of several experts: use loss 'sade', got '{loss}'"
    if stage and stage["name"] == "expert_aggregation" and head != "experts":
        yield "balancing.second_stage", f"'expert_aggregation' weighs the experts of head 'experts', got head '{head}'"


def _dot_regression(recipe: Recipe) -> Iterator[Conflict]:
    """Dot-regression pulls an embedding to its prototype's direction and its own length: no scale, no softmax."""
    loss, head = recipe["balancing"]["loss"]["name"], recipe["head"]
    prototypes = head["name"] == "prototype"
    products = prototypes and (head["scale"] == 1 or not head["normalise"])
    if loss == "etf_dot_regression" and not products:
        yield "head", f"loss '{loss}' needs unscaled products with fixed prototypes: {{name: prototype, scale: 1}}"
    if prototypes and not head["normalise"] and loss != "etf_dot_regression":
        yield "head.normalise", f"raw products are for loss 'etf_dot_regression'; use normalise true with '{loss}'"


def _learned_embedding(recipe: Recipe) -> Iterator[Conflict]:
    """A term that shapes the embedding needs one that training changes."""
    head, loss = recipe["head"], recipe["balancing"]["loss"]["name"]
    learns = head["name"] in ("decoder", "prototype") or head.get("adapter")
    if recipe["tuning"]["name"] != "linear_probe" or learns:
        return
    remedy = (
        f"head '{head['name']}' trains its classifier alone; set head.adapter to a width such as 128, or use head "
        "'decoder'"
    )
    if loss in ("paco", "gpaco"):
        yield "head", f"loss '{loss}' contrasts embeddings, and {remedy}"
    for one in recipe["balancing"]["regularizers"]:
        if one["name"] not in _ON_TEXT:
            yield "balancing.regularizers", f"'{one['name']}' shapes the embedding, and {remedy}"


_ON_TEXT = ("image_text_contrast", "text_anchor", "npt", "cpt")


def _learned_text(recipe: Recipe) -> Iterator[Conflict]:
    """Prompts are read by the text tower, so the class names are the classifier; and some terms are for them alone."""
    tuning, head = recipe["tuning"]["name"], recipe["head"]["name"]
    if tuning == "prompt":
        if head != "text":
            yield "head", f"tuning 'prompt' classifies by the text features of the names: use head 'text', got '{head}'"
        return
    for one in recipe["balancing"]["regularizers"]:
        if one["name"] in _ON_TEXT:
            yield "balancing.regularizers", f"'{one['name']}' is for text that is learned: use tuning 'prompt'"
    gradient = recipe["balancing"]["gradient"]
    if gradient and gradient["name"] == "prograd":
        yield "balancing.gradient", "'prograd' compares with the zero-shot model: use tuning 'prompt'"


def _novel_classes(recipe: Recipe) -> Iterator[Conflict]:
    """Classes that were not trained are known by their names, to a head that reads names."""
    settings = recipe["evaluation"]
    if settings["novel"] and recipe["data"]["classes"] != "base":
        yield "evaluation.novel", "tests on the other half of the classes: set data.classes to base"
    if settings["curve"] and not settings["novel"]:
        yield "evaluation.curve", "is the curve of base and novel accuracy: set evaluation.novel to true"
    if settings["novel"] or settings["transfer"]:
        key = "novel" if settings["novel"] else "transfer"
        if recipe["head"]["name"] != "text":
            yield f"evaluation.{key}", f"needs a head that reads class names, 'text', got '{recipe['head']['name']}'"
        if recipe["tuning"].get("csc"):
            yield (
                "tuning.csc",
                f"a context for each class has none for the new ones of evaluation.{key}: set csc to false",
            )
        after = [part for part in ("second_stage", "post_hoc") if recipe["balancing"][part]]
        for part in after:
            yield (
                f"evaluation.{key}",
                f"knows nothing of balancing.{part}, which is fitted to the trained classes alone",
            )


def _after_training(recipe: Recipe) -> Iterator[Conflict]:
    """What comes after training needs training before it."""
    if recipe["tuning"]["name"] != "zero_shot":
        return
    section = recipe["balancing"]
    if section["second_stage"]:
        stage = section["second_stage"]["name"]
        yield (
            "balancing.second_stage",
            f"'{stage}' is fitted on a trained head; use tuning 'linear_probe', or none of it",
        )
    if section["regularizers"]:
        yield "balancing.regularizers", "tuning 'zero_shot' trains nothing that a regularizer could act on"


def _averages(recipe: Recipe) -> Iterator[Conflict]:
    """Interpolating from a random start leads away from both ends."""
    init = recipe["head"].get("init")
    if recipe["training"]["interpolation"] < 1 and init == "random":
        yield (
            "training.interpolation",
            f"goes from the head's start to the trained one, and head '{recipe['head']['name']}' starts at random: "
            "use init 'text' or 'class_mean'",
        )


def _full_tuning(recipe: Recipe) -> Iterator[Conflict]:
    """Full fine-tuning is held to where it starts, which must mean something."""
    tuning, head = recipe["tuning"], recipe["head"]
    if tuning["name"] != "full":
        return
    if tuning["kl"] and head.get("init") == "random":
        yield (
            "tuning.kl",
            f"holds to the head's start, and '{head['name']}' starts at random: use init 'text' or 'class_mean'",
        )


def _sharded(recipe: Recipe) -> Iterator[Conflict]:
    """A tower in parts is one that is trained, by its plain gradient, and never in one piece."""
    plan, tuning = recipe["training"], recipe["tuning"]["name"]
    if not plan["shard"]:
        return
    if tuning not in ("full", "peft"):
        yield "training.shard", f"is for a tower that is trained: use tuning 'full' or 'peft', got '{tuning}'"
    if plan["ema"] or plan["interpolation"] < 1:
        yield "training.shard", "needs training.ema 0 and training.interpolation 1, which average weights in one piece"
    if recipe["balancing"]["gradient"]:
        yield "training.shard", "needs every gradient in one piece to transform it: leave out balancing.gradient"


def _published(recipe: Recipe) -> Iterator[Conflict]:
    """A published row holds scores, as numbers, and its source."""
    scores = [column.name for column in columns_of([{"name": "accuracy"}, {"name": "calibration"}])]
    for key, value in (recipe["paper"] or {}).items():
        if key == "source":
            continue
        if key not in scores:
            yield f"paper.{key}", f"unknown score.{did_you_mean(key, scores)} Allowed: source, {', '.join(scores)}"
        elif not isinstance(value, (int, float)):
            yield f"paper.{key}", f"must be a number, got {value!r}"
