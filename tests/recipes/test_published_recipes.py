"""Recipes of published rows and of real models: their figures, their weights, and the settings of the papers."""

from __future__ import annotations

import pytest

from imbalance_vlm.recipe.load import recipes_folder
from imbalance_vlm.recipe.study import plan

BASE_TO_NOVEL = sorted(path.stem for path in (recipes_folder() / "base_to_novel").glob("*.yaml"))
REAL = [
    path.relative_to(recipes_folder()).with_suffix("").as_posix()
    for folder in ("imagenet_lt", "places_lt", "inat2018", "cifar100_lt", "base_to_novel")
    for path in sorted((recipes_folder() / folder).glob("*.yaml"))
] + ["studies/pretraining_ladder", "studies/backbones"]
ELEVEN = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
)  # fmt: skip

PUBLISHED = {
    "imagenet_lt/zero_shot": (68.3, 69.2, 67.6, 67.7),
    "imagenet_lt/zero_shot_vit_l14": (73.57,),
    "imagenet_lt/linear_probe": (74.2,),
    "imagenet_lt/full": (73.9,),
    "imagenet_lt/decoder": (73.2,),
    "imagenet_lt/decoder_vit_l14": (79.3,),
    "imagenet_lt/lift": (77.0,),
    "imagenet_lt/lift_tte": (78.3, 81.3, 77.4, 73.4),
    "imagenet_lt/lift_tte_vit_l14": (82.9,),
    "places_lt/linear_probe": (48.8,),
    "places_lt/full": (46.6,),
    "places_lt/decoder": (46.8,),
    "places_lt/lift": (51.5, 51.3, 52.2, 50.5),
    "places_lt/lift_tte": (52.2,),
    "places_lt/lift_tte_vit_l14": (53.7,),
    "inat2018/linear_probe": (60.4,),
    "inat2018/full": (76.1,),
    "inat2018/decoder_vit_l14": (72.3,),
    "inat2018/lift": (79.1,),
    "inat2018/lift_tte_vit_l14": (85.2,),
    "cifar100_lt/linear_probe": (70.0,),
    "cifar100_lt/full": (79.6,),
    "cifar100_lt/lift_tte": (81.7,),
}
"""Overall, and many, medium and few where they are known and confirmed."""
UNCONFIRMED = (
    "places_lt/zero_shot",
    "inat2018/zero_shot",
    "cifar100_lt/zero_shot",
    "inat2018/decoder",
    "inat2018/lift_tte",
    "cifar100_lt/lift",
    "places_lt/decoder_vit_l14",
)
LADDER = {
    ("ViT-B-32", "openai"): 63.3,
    ("ViT-B-32", "laion400m"): 60.2,
    ("ViT-B-32", "laion2b"): 66.6,
    ("ViT-B-32", "datacomp_s"): 3.9,
    ("ViT-B-32", "datacomp_m"): 29.7,
    ("ViT-B-32", "datacomp_xl"): 69.2,
    ("ViT-B-16", "openai"): 68.3,
    ("ViT-B-16", "laion400m"): 67.1,
    ("ViT-B-16", "laion2b"): 70.2,
    ("ViT-B-16", "datacomp_l"): 63.1,
    ("ViT-B-16", "datacomp_xl"): 73.5,
    ("ViT-L-14", "openai"): 75.5,
    ("ViT-L-14", "laion400m"): 72.8,
    ("ViT-L-14", "laion2b"): 75.3,
    ("ViT-L-14", "datacomp_xl"): 79.2,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_row_is_the_confirmed_one(name: str) -> None:
    (recipe,) = plan(name).recipes
    figures = dict(zip(("overall", "many", "medium", "few"), PUBLISHED[name], strict=False))
    assert {key: value for key, value in recipe["paper"].items() if key != "source"} == figures


@pytest.mark.parametrize("name", UNCONFIRMED)
def test_an_unconfirmed_figure_is_not_printed_beside_ours(name: str) -> None:
    (recipe,) = plan(name).recipes
    assert recipe["paper"] is None


@pytest.mark.parametrize("name", REAL)
def test_the_weights_exist_under_that_tag(name: str) -> None:
    import open_clip

    for recipe in plan(name).recipes:
        encoder = recipe["encoder"]
        assert encoder["pretrained"] in open_clip.list_pretrained_tags_by_model(encoder["name"])
        if encoder["pretrained"] == "openai":
            assert encoder["name"].endswith("-quickgelu"), "OpenAI's weights were trained with that activation"


@pytest.mark.parametrize("name", REAL)
def test_the_header_says_what_it_takes(name: str) -> None:
    text = (recipes_folder() / f"{name}.yaml").read_text()
    header = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Hardware and time expected: " in header
    assert "Paper" in header
    assert header.rstrip().endswith("Not verified here.")
    figures = [f"{value:g}" for value in PUBLISHED.get(name, ())]
    assert all(figure in header for figure in figures[:1])
    assert "confirmed" in header or name not in UNCONFIRMED


def test_the_ladder_is_the_published_one() -> None:
    study = plan("studies/pretraining_ladder")
    figures = {
        (recipe["encoder"]["name"].removesuffix("-quickgelu"), recipe["encoder"]["pretrained"]): recipe["paper"][
            "overall"
        ]
        for recipe in study.recipes
    }
    matched = {
        (name, start): figure
        for (name, tag), figure in figures.items()
        for model, start in LADDER
        if model == name and (tag == start or tag.startswith(f"{start}_"))
    }
    assert matched == LADDER
    assert len(figures) == len(study.recipes) == len(LADDER)
    assert {"pretrain_pairs", "samples_seen"} <= set(study.table["columns"])
    assert all(recipe["data"]["templates"] == "openai" for recipe in study.recipes)


def test_the_backbones_show_what_they_cost() -> None:
    study = plan("studies/backbones")
    costs = {"trainable_parameters", "encode_seconds", "train_seconds", "peak_memory_mb", "images_per_second"}
    assert costs <= set(study.table["columns"])
    names = {recipe["encoder"]["name"] for recipe in study.recipes}
    assert names == {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-B-16-SigLIP"}


def test_lift_is_the_authors_setting() -> None:
    """The numbers of their configuration, github.com/shijxcs/LIFT."""
    (recipe,) = plan("imagenet_lt/lift").recipes
    assert recipe["tuning"] | {"crops": ""} == {
        "name": "peft",
        "method": "adaptformer",
        "width": None,
        "crops": "",
        "min_scale": 0.08,
    }
    head, optimizer = recipe["head"], recipe["training"]["optimizer"]
    assert (head["name"], head["init"], head["scale"]) == ("cosine", "text", 25)
    assert (optimizer["lr"], optimizer["momentum"], optimizer["weight_decay"]) == (0.01, 0.9, 5e-4)
    assert recipe["training"]["batch_size"] == 128
    assert recipe["balancing"]["loss"]["name"] == "logit_adjustment"
    assert recipe["encoder"]["features"] == "class_token"
    assert recipe["encoder"]["name"].endswith("-quickgelu"), "OpenAI's weights were trained with that activation"


@pytest.mark.parametrize("name", [name for name in REAL if "/decoder" in name])
def test_the_decoder_trains_for_the_published_number_of_steps(name: str) -> None:
    (recipe,) = plan(name).recipes
    images = {"imagenet_lt": 115_846, "places_lt": 62_500, "inat2018": 437_513}[name.split("/")[0]]
    per_epoch = images / recipe["training"]["batch_size"]
    assert recipe["training"]["epochs"] * per_epoch == pytest.approx(8192, rel=0.05)
    assert recipe["training"]["schedule"]["warmup_epochs"] * per_epoch == pytest.approx(512, rel=0.02)
    assert recipe["tuning"]["views"] == recipe["training"]["epochs"], "a new crop at every epoch"


# -- base to novel ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASE_TO_NOVEL)
@pytest.mark.parametrize("dataset", ELEVEN)
def test_any_of_the_eleven_sets_keeps_the_protocol(name: str, dataset: str) -> None:
    study = plan(f"base_to_novel/{name}", [f"data.name={dataset}", "data.root=DATA"])
    labels = {recipe["name"].rpartition("base_to_novel/")[2].split("/")[1] for recipe in study.recipes}
    assert "zero-shot" in labels, "zero-shot is in every table"
    for recipe in study.recipes:
        data = recipe["data"]
        shots = 4 if name == "subpt" else 16
        assert (data["name"], data["root"], data["shots"], data["classes"]) == (dataset, "DATA", shots, "base")
        assert "base_to_novel" in recipe["evaluation"]
    assert {recipe["seed"] for recipe in study.recipes} == {1, 2, 3}
    if name == "imbalanced":
        assert {recipe["data"]["tau"] for recipe in study.recipes} == {1.0, 0.25, 0.06}


SETTINGS = {
    "coop": {"batch_size": 32, "lr": 2e-3, "epochs": 200, "init": "a photo of a", "n_ctx": None},
    "cocoop": {"batch_size": 1, "lr": 2e-3, "epochs": 10, "init": "a photo of a", "n_ctx": None},
    "kgcoop": {"batch_size": 128, "lr": 2e-3, "epochs": 100, "weight": 8.0},
    "maple": {"batch_size": 4, "lr": 3.5e-3, "epochs": 5, "n_ctx": 2, "depth": 9},
    "promptsrc": {"batch_size": 4, "lr": 2.5e-3, "epochs": 20, "n_ctx": 4, "tokens": 4, "depth": 9, "text": 25.0,
                  "image": 10.0, "mean": 15.0, "std": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("method", SETTINGS)
def test_settings_are_the_papers(method: str) -> None:
    recipes = plan(f"base_to_novel/{method}").recipes
    recipe = next(recipe for recipe in recipes if recipe["name"].endswith(f"/{method}"))
    training, optimizer = recipe["training"], recipe["training"]["optimizer"]
    assert recipe["tuning"]["method"] == method
    assert (optimizer["name"], optimizer["momentum"], optimizer["weight_decay"]) == ("sgd", 0.9, 5e-4)
    assert (training["schedule"]["name"], training["schedule"]["warmup_epochs"]) == ("cosine_constant_warmup", 1)
    assert training["schedule"]["warmup_lr"] == 1e-5
    settings = recipe["tuning"] | {key: training[key] for key in ("batch_size", "epochs")} | {"lr": optimizer["lr"]}
    assert {key: settings[key] for key in SETTINGS[method]} == SETTINGS[method]
