"""A package with one component of each kind (`package/tail_extras`), installed beside this one and used like our own.

All jobs are done by two processes of `driver.py`: one that lists, checks, runs and resumes, and then one that reads the
finished runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.plugins.cases import (
    ACCEPTED,
    COMPONENTS,
    OUT_OF_RANGE,
    PROBE,
    REFUSED,
    REFUSED_ENCODERS,
    REFUSED_RUNS,
    merged,
    plain,
    swapped,
)

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

Outcomes = dict[str, Any]


def patch_weights(file: Path, seed: int) -> str:
    """Weights of a `PatchTower` of width 12."""
    generator = torch.Generator().manual_seed(seed)
    state = {"map.weight": torch.randn(12, 48, generator=generator) / 7, "map.bias": torch.zeros(12)}
    save_file(state | {"norm.weight": torch.ones(12), "norm.bias": torch.zeros(12)}, file)
    return str(file)


def index(root: Path) -> None:
    """List the images below train/ and test/; the last two of each training class are for validation."""
    rows = []
    for path in sorted(root.rglob("*.png")):
        split, name, file = path.relative_to(root).parts
        rows.append(
            ("val" if split == "train" and file in ("0.png", "1.png") else split, name, f"{split}/{name}/{file}")
        )
    for name, listed in (("index.tsv", rows), ("no_val.tsv", [row for row in rows if row[0] != "val"])):
        (root / name).write_text("".join("\t".join(row) + "\n" for row in listed))


class Places:
    """The files of the test, and its recipes that run.

    Args:
        folder: a temporary one.
        images: train/ and test/ with class folders.
        tiny_clip: the name of an open_clip model.
    """

    def __init__(self, folder: Path, images: Path, tiny_clip: str) -> None:
        self.folder = folder
        self.root = shutil.copytree(images, folder / "colours")
        index(self.root)
        self.weights = patch_weights(folder / "weights.safetensors", 0)
        self.same_weights = str(shutil.copyfile(self.weights, folder / "same.safetensors"))
        self.other_weights = patch_weights(folder / "other.safetensors", 1)
        self.image = str(self.root / "train" / "red_apple" / "3.png")
        self.other_image = str(self.root / "train" / "blue_car" / "3.png")
        self.file = folder / "recipe.yaml"
        self.new_images = str(images / "test" / "red_apple")
        self.data = {"name": "indexed", "root": str(self.root)}
        self.patches = {"name": "patches", "weights": self.weights}
        self.tiny_clip = tiny_clip
        probe = merged(plain(self.data, self.patches), head={"name": "low_rank", "rank": 6})
        self.recipes = {
            "probe": merged(
                probe,
                balancing={
                    "loss": "center",
                    "sampler": "repeat_factor",
                    "regularizers": ["variance", {"name": "prototype_contrastive", "assign": "none"}],
                    "gradient": "centralised",
                    "second_stage": "scaled_bias",
                    "post_hoc": "many_penalty",
                },
                evaluation__top_k={"k": 3},
            ),
            "tower": merged(probe, name="tower", tuning={"name": "peft", "method": "norm_scale", "last": 1}),
            "prompt": merged(
                plain(self.data | {"classes": "base"}, f"grey:{tiny_clip}"),
                name="prompt",
                tuning={"name": "prompt", "method": "noisy_coop", "noise": 0.2},
                head="text",
                balancing={"loss": "poly1", "regularizers": ["text_uniformity", "text_anchor"]},
                training__batch_size=8,
                evaluation__base_to_novel=True,
            ),
        }


Jobs = dict[str, list[Any]]


def checks(places: Places) -> Jobs:
    """What is listed, shown, refused and accepted without running anything."""
    jobs: Jobs = {"other dataset": ["plan", PROBE, ["data.name=indexed"]]}  # comes first: plug-ins are not loaded yet
    jobs |= {"ls": ["command", "ls"], "schema": ["command", "schema"]}
    jobs |= {f"show {name}": ["command", "show", name] for name in COMPONENTS}
    for case, (recipe, name, ours) in REFUSED.items():
        jobs |= {f"{case}: theirs": ["plan", recipe], f"{case}: ours": ["plan", swapped(recipe, name, ours)]}
    for case, changes in REFUSED_ENCODERS.items():
        theirs, ours = ({**PROBE, **changes, "encoder": encoder} for encoder in (places.patches, "timm:test_vit"))
        jobs |= {f"{case}: theirs": ["plan", theirs], f"{case}: ours": ["plan", ours]}
    jobs |= {f"range of {case}": ["plan", recipe] for case, (recipe, _) in OUT_OF_RANGE.items()}
    jobs |= {f"accepted {case}": ["plan", recipe] for case, recipe in ACCEPTED.items()}
    places.file.write_text(json.dumps(places.recipes["probe"]))
    jobs["verify"] = ["command", "data", "verify", str(places.file), "--workers", "1"]
    return jobs


def refused_runs(places: Places) -> Jobs:
    """What is refused once data and encoder are known."""
    no_val = plain(places.data | {"index": "no_val.tsv"}, places.patches)
    convolutional = plain(places.data, {"name": "timm:test_resnet", "pretrained": "random"})
    recipes = {
        "second stage": no_val | {"balancing": {"second_stage": "scaled_bias"}},
        "correction": no_val | {"balancing": {"post_hoc": "many_penalty"}},
        "tower": convolutional | {"tuning": {"name": "peft", "method": "norm_scale"}},
    }
    jobs: Jobs = {}
    for case, (name, ours) in REFUSED_RUNS.items():
        jobs[f"{case}: theirs"] = ["refused run", recipes[case], "refused"]
        jobs[f"{case}: ours"] = ["refused run", swapped(recipes[case], name, ours), "refused"]
    by_features = {"name": "prototype_contrastive", "assign": "class_mean"}
    contrast = merged(places.recipes["tower"], balancing={"regularizers": by_features})
    jobs["prototypes"] = ["refused run", contrast, "refused"]
    return jobs


def runs(places: Places) -> Jobs:
    """Runs that are interrupted and resumed, and the same recipe after its files have changed."""
    probe = places.recipes["probe"]
    return {
        **{f"resume {name}": ["resume", recipe, "runs", "undisturbed"] for name, recipe in places.recipes.items()},
        "read back": ["run", probe, "runs"],
        "change the weights": ["copy", places.other_weights, places.weights],
        "other weights": ["run", probe, "runs"],
        "put back the weights": ["copy", places.same_weights, places.weights],
        "same weights": ["run", probe, "runs"],
        "change an image": ["copy", places.other_image, places.image],
        "other images": ["run", probe, "runs"],
    }


def predictions(places: Places, finished: Outcomes) -> Jobs:
    """What another process does with the finished runs."""
    paths = {name: finished[f"resume {name}"]["resumed"]["path"] for name in places.recipes}
    return {
        **{f"predict {name}": ["predict", path, [places.new_images]] for name, path in paths.items()},
        "table": ["command", "table", "runs", "--columns", "recipe,overall,top_3", "--sort", "top_3"],
        "change the weights": ["copy", places.other_weights, places.weights],
        "refused prediction": ["refused prediction", paths["probe"], [places.new_images]],
    }


def installed(package: Path, folder: Path, name: str) -> Path:
    """A folder for PYTHONPATH that holds a package with an entry point, as pip would install it."""
    site = folder / "site"
    shutil.copytree(package, site, ignore=shutil.ignore_patterns("__pycache__"))
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[imbalance_vlm.plugins]\n{name} = {name}\n")
    return site


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_clip: str) -> Places:
    return Places(tmp_path_factory.mktemp("plugins"), images, tiny_clip)


@pytest.fixture(scope="module")
def outcomes(places: Places) -> Outcomes:
    """The outcomes of all jobs, by name."""
    site = installed(HERE / "package", places.folder, "tail_extras")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "IMBALANCE_VLM_CACHE": str(places.folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "error::UserWarning",
    }

    def do(jobs: Jobs, name: str) -> Outcomes:
        job_file, outcome_file = (places.folder / f"{name}_{what}.json" for what in ("jobs", "outcomes"))
        job_file.write_text(json.dumps(jobs))
        arguments = [sys.executable, str(HERE / "driver.py"), str(job_file), str(outcome_file)]
        process = subprocess.run(arguments, cwd=places.folder, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout + process.stderr
        result: Outcomes = json.loads(outcome_file.read_text())
        return result

    first = do(checks(places) | refused_runs(places) | runs(places), "first")
    return first | do(predictions(places, first), "second")


def without(message: str, name: str) -> str:
    """A message without the name of a component."""
    return re.sub(rf"\b{re.escape(name)}\b", "NAME", message)


# -- listed, shown, checked ------------------------------------------------------------------------------------------
def test_every_component_is_listed_with_its_kind(outcomes: Outcomes) -> None:
    listing = re.split(r"^(\w+):$", outcomes["ls"], flags=re.MULTILINE)
    names = {
        kind: re.findall(r"^  (\S+)", text, re.MULTILINE)
        for kind, text in zip(listing[1::2], listing[2::2], strict=True)
    }
    assert [name for name, (kind, _) in COMPONENTS.items() if name not in names[kind]] == []
    assert "balanced softmax plus epsilon times the missing probability (Leng et al., PolyLoss" in outcomes["ls"]


@pytest.mark.parametrize("name", COMPONENTS)
def test_every_component_is_shown_with_its_settings(name: str, outcomes: Outcomes) -> None:
    text = outcomes[f"show {name}"]
    kind, setting = COMPONENTS[name]
    assert text.startswith(f"{name} ({kind}): ")
    assert setting in text


def test_show_lists_what_a_method_trains(outcomes: Outcomes) -> None:
    assert "transformer.resblocks.11.ln_2.weight (768)" in outcomes["show norm_scale"]
    assert "ln_post.weight (768)" in outcomes["show norm_scale"]


def test_the_schema_for_editors_knows_every_component(outcomes: Outcomes) -> None:
    text = outcomes["schema"]
    assert [name for name, (kind, _) in COMPONENTS.items() if f'"{name}"' not in text and kind != "encoders"] == []


@pytest.mark.parametrize("case", [*REFUSED, *REFUSED_ENCODERS, *REFUSED_RUNS])
def test_what_cannot_work_is_refused_in_the_same_words_as_ours(case: str, outcomes: Outcomes) -> None:
    if case in REFUSED_ENCODERS:
        name, ours = "patches", "timm:test_vit"
    else:
        name, ours = REFUSED_RUNS[case] if case in REFUSED_RUNS else REFUSED[case][1:]
    message = outcomes[f"{case}: theirs"]
    assert message
    assert without(message, name) == without(outcomes[f"{case}: ours"], ours)


@pytest.mark.parametrize("case", OUT_OF_RANGE)
def test_wrong_settings_are_refused(case: str, outcomes: Outcomes) -> None:
    assert OUT_OF_RANGE[case][1] in outcomes[f"range of {case}"]


def test_prototypes_of_another_width_are_not_assigned_by_features(outcomes: Outcomes) -> None:
    assert outcomes["prototypes"] == (
        "`assign` of 'prototype_contrastive' must be 'none' where the head's embeddings have another width than the "
        "features, 6 and 12, got 'class_mean'"
    )


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_works_together_is_accepted(case: str, outcomes: Outcomes) -> None:
    assert outcomes[f"accepted {case}"] == ""


def test_another_dataset_keeps_the_setting_that_both_require(outcomes: Outcomes) -> None:
    assert outcomes["other dataset"] == ""


def test_data_verify_reads_the_dataset_of_a_recipe(outcomes: Outcomes) -> None:
    assert "65 images of 4 classes" in outcomes["verify"]
    assert re.search(r"val +8 ", outcomes["verify"])


# -- run, resumed, predicted with ------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["probe", "tower", "prompt"])
def test_a_run_is_resumed_with_the_same_numbers(name: str, outcomes: Outcomes) -> None:
    resumed, undisturbed = (outcomes[f"resume {name}"][how] for how in ("resumed", "undisturbed"))
    assert "resuming after epoch 1 and 1 steps of the next" in outcomes[f"resume {name}"]["output"]
    assert len(resumed["losses"]) == 2
    assert all(np.isfinite(resumed["losses"]))
    for key in ("weights", "losses", "chosen"):
        assert resumed[key] == undisturbed[key]
    np.testing.assert_equal(resumed["scores"], undisturbed["scores"])


def test_a_second_stage_and_a_correction_report_what_they_chose(outcomes: Outcomes) -> None:
    chosen = outcomes["resume probe"]["resumed"]["chosen"]
    assert set(chosen) == {"second_stage.factor", "post_hoc.penalty"}


def test_the_columns_of_an_evaluator_are_in_the_table(outcomes: Outcomes) -> None:
    run = outcomes["resume probe"]["resumed"]
    assert run["scores"]["top_3"] >= run["scores"]["overall"]
    assert run["columns"].index("top_3") > run["columns"].index("worst_class")
    header, _, *rows = [line.split("|")[1:-1] for line in outcomes["table"].splitlines()]
    assert [cell.strip() for cell in header] == ["recipe", "overall", "top_3"]
    cells = [row[2].strip() for row in rows if row[0].strip() == "probe"]
    assert cells
    assert all(re.fullmatch(r"\d+\.\d\d( .*)?", cell) for cell in cells), "its column has two decimal places"


def test_new_classes_are_tested_with_a_prompt_method(outcomes: Outcomes) -> None:
    assert 0 <= outcomes["resume prompt"]["resumed"]["scores"]["novel"] <= 100


@pytest.mark.parametrize("name", ["probe", "tower", "prompt"])
def test_another_process_predicts_with_the_finished_run(name: str, outcomes: Outcomes) -> None:
    predicted = outcomes[f"predict {name}"]
    assert len(predicted["image"]) == 5
    assert set(predicted["predicted"]) <= {"blue_car", "green_leaf", "red_apple", "white_cup"}
    assert all(0 < confidence <= 1 for confidence in predicted["confidence"])


# -- the identity of a run -------------------------------------------------------------------------------------------
def test_a_finished_run_is_read_back(outcomes: Outcomes) -> None:
    first = outcomes["resume probe"]["resumed"]
    for again in ("read back", "same weights"):
        assert (outcomes[again]["path"], outcomes[again]["written"]) == (first["path"], first["written"])


@pytest.mark.parametrize("change", ["other weights", "other images"])
def test_changed_files_make_another_run(change: str, outcomes: Outcomes) -> None:
    first, other = outcomes["resume probe"]["resumed"], outcomes[change]
    assert other["path"] != first["path"]
    assert other["losses"] != first["losses"]


def test_a_run_does_not_predict_with_other_weights_of_its_encoder(outcomes: Outcomes) -> None:
    assert "was trained on another base model" in outcomes["refused prediction"]
