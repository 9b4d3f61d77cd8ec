"""Runs: read when finished, resumed when killed, the same for the same seed."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import imbalance_vlm
from imbalance_vlm import InputError, assembly, pipeline
from imbalance_vlm.results.result import RunResult, StudyResult
from imbalance_vlm.training import devices

Recipe = dict[str, Any]
EPOCHS = 40
GRID = {"grid": {"variants": {"ce": {"balancing.loss": "cross_entropy"}, "bs": {}}, "seeds": [0, 1]}}


def run(recipe: Recipe, *overrides: str, **how: Any) -> RunResult:
    result = imbalance_vlm.run(recipe, overrides, **how)
    assert isinstance(result, RunResult)
    return result


def study(recipe: Recipe, **how: Any) -> StudyResult:
    result = imbalance_vlm.run(recipe | GRID, **how)
    assert isinstance(result, StudyResult)
    return result


def weights(result: RunResult) -> bytes:
    return (result.path / "head.safetensors").read_bytes()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names and seeds of the runs that were computed, not read."""
    names: list[str] = []
    real = pipeline.run_one

    def counted(recipe: Recipe, *rest: Any) -> RunResult:
        names.append(f"{recipe['name']} {recipe['seed']}")
        return real(recipe, *rest)

    monkeypatch.setattr(pipeline, "run_one", counted)
    return names


# -- finished runs ---------------------------------------------------------------------------------------------------


def test_a_finished_run_is_read_not_computed(recipe: Recipe, computed: list[str]) -> None:
    first, second = run(recipe), run(recipe)
    assert computed == ["tiny 0"]
    assert first.path == second.path
    np.testing.assert_equal(second.scores, first.scores)


def test_force_runs_again(recipe: Recipe, computed: list[str]) -> None:
    first = run(recipe)
    (first.path / "left_over.txt").touch()
    assert weights(run(recipe, force=True)) == weights(first)
    assert len(computed) == 2
    assert not (first.path / "left_over.txt").exists()


@pytest.mark.parametrize("override", ["training.epochs=2", "seed=1", "head=cosine", "data.templates=simple"])
def test_any_difference_is_another_run(recipe: Recipe, computed: list[str], override: str) -> None:
    assert run(recipe).path != run(recipe, override).path
    assert len(computed) == 2


def test_words_about_a_recipe_make_no_difference(recipe: Recipe, computed: list[str]) -> None:
    run(recipe)
    run(recipe, "description=hello")
    assert len(computed) == 1


def test_changed_images_are_another_run_on_the_changed_images(recipe: Recipe, tmp_path: Path) -> None:
    import shutil

    own = Path(shutil.copytree(recipe["data"]["root"], tmp_path / "own"))
    before = run(recipe, f"data.root={own}")
    for file in list((own / "test" / "red_apple").iterdir())[1:]:
        file.unlink()
    after = run(recipe, f"data.root={own}")
    assert (before.record["images"]["test"], after.record["images"]["test"]) == (20, 16)


def test_a_study_reads_what_is_finished(recipe: Recipe, computed: list[str]) -> None:
    first = study(recipe)
    assert computed == ["tiny/ce 0", "tiny/ce 1", "tiny/bs 0", "tiny/bs 1"]
    again = study(recipe)
    assert len(computed) == 4
    assert first.table.equals(again.table)
    assert {path.name for path in first.path.iterdir()} >= {"table.csv", "table.md", "study.json", "ce", "bs"}


def test_a_study_s_table_is_mean_sample_deviation_and_n_over_seeds(recipe: Recipe) -> None:
    result = study(recipe)
    assert list(result.table["recipe"]) == ["ce", "bs"]
    assert list(result.table["n"]) == [2, 2]
    assert list(result.table["seeds"]) == ["0,1", "0,1"]
    for label, (first, second) in {0: result.runs[:2], 1: result.runs[2:]}.items():
        both = [first.scores["overall"], second.scores["overall"]]
        assert result.table["overall"][label] == pytest.approx(np.mean(both))
        assert result.table["overall_std"][label] == pytest.approx(np.std(both, ddof=1))


def test_a_damaged_result_is_an_error_that_says_what_to_do(recipe: Recipe) -> None:
    path = run(recipe).path / "result.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(InputError, match=r"result\.json is not a result file.*--force"):
        run(recipe)
    assert run(recipe, force=True).scores["overall"] >= 0


# -- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "cosine", "decoder"])
def test_one_seed_gives_one_set_of_numbers(recipe: Recipe, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the first run makes the encoder and its features, and the second finds both."""
    assembly.encoder.cache_clear()
    options = {"drop": 0.5, "init": "class_mean"} if head == "decoder" else {}
    recipe = recipe | {"head": {"name": head, **options}}
    first, second = run(recipe, runs="a"), run(recipe, runs="b")
    assert weights(first) == weights(second)
    np.testing.assert_equal(first.scores, second.scores)
    assert (first.path / "predictions.csv").read_bytes() == (second.path / "predictions.csv").read_bytes()


def test_other_seeds_see_the_data_in_another_order(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from imbalance_vlm.encoders.sources import FeatureSource

    orders: list[tuple[int, ...]] = []
    real = FeatureSource.batches

    def spied(self: FeatureSource, rows: Any, epoch: int = 0) -> Any:
        orders.append(tuple(row for chosen in rows for row in chosen.tolist()))
        return real(self, rows, epoch)

    monkeypatch.setattr(FeatureSource, "batches", spied)
    for seed in (0, 1):
        run(recipe, f"seed={seed}", "training.epochs=2")
    train = [order for order in orders if len(order) == 45]
    assert len(train) == len(set(train)) == 4, "two seeds, two epochs, four orders"


def test_the_order_of_a_study_s_runs_makes_no_difference(recipe: Recipe) -> None:
    alone = run(recipe, "seed=1", "name=tiny/bs", runs="alone")
    within = study(recipe, runs="study").runs[3]
    assert within.path.relative_to("study") == alone.path.relative_to("alone")
    assert weights(within) == weights(alone)


def test_more_seconds_between_checkpoints_change_no_weight(recipe: Recipe) -> None:
    often, never = run(recipe, "training.checkpoint_seconds=0"), run(recipe, "training.checkpoint_seconds=1000")
    tensors = [path.read_bytes()[-100:] for path in (r.path / "head.safetensors" for r in (often, never))]
    assert tensors[0] == tensors[1]


# -- killed runs -----------------------------------------------------------------------------------------------------


def kill_when(path: Path, ready: Callable[[], bool]) -> None:
    """Start the recipe in a process of its own and `kill -9` it as soon as `ready()`."""
    command = [sys.executable, "-m", "imbalance_vlm", "run", str(path), "--runs", "killed", "--device", "cpu"]
    environment = os.environ | {"PYTHONPATH": str(Path(imbalance_vlm.__file__).parents[1])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, f"it ended too early: {process.communicate()[0].decode()}"
            assert time.monotonic() < deadline, "it took too long"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["training"] |= {"epochs": EPOCHS, "checkpoint_seconds": 0, "clip_grad_norm": 1.0}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def in_the_middle() -> bool:
        written = [file.read_text().count("\n") for file in Path("killed").rglob("metrics.jsonl")]
        return bool(written) and written[0] >= 3

    kill_when(path, in_the_middle)
    assert not list(Path("killed").rglob("result.json"))
    resumed = run(recipe, runs="killed", device="cpu")
    epoch = re.search(r"resuming after epoch (\d+)", capsys.readouterr().err)
    assert epoch
    assert 3 <= int(epoch[1]) < EPOCHS
    undisturbed = run(recipe, runs="undisturbed", device="cpu")
    assert weights(resumed) == weights(undisturbed)
    np.testing.assert_equal(resumed.scores, undisturbed.scores)
    losses = [
        [json.loads(line)["loss"] for line in (r.path / "metrics.jsonl").read_text().splitlines()]
        for r in (resumed, undisturbed)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == EPOCHS
    assert not list(resumed.path.parent.rglob("checkpoint.pt"))


def test_a_killed_study_keeps_its_finished_runs(recipe: Recipe, tmp_path: Path, computed: list[str]) -> None:
    recipe["training"] |= {"epochs": 8, "checkpoint_seconds": 0}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe | GRID))
    kill_when(path, lambda: len(list(Path("killed").rglob("result.json"))) == 2)
    finished = len(list(Path("killed").rglob("result.json")))
    resumed = study(recipe, runs="killed", device="cpu")
    assert len(computed) == 4 - finished < 4
    undisturbed = study(recipe, runs="undisturbed", device="cpu")
    assert [weights(r) for r in resumed.runs] == [weights(r) for r in undisturbed.runs]
    scores = ["recipe", "overall", "overall_std", "many", "medium", "few", "nll"]
    assert resumed.table[scores].equals(undisturbed.table[scores])


# -- what can go wrong -----------------------------------------------------------------------------------------------


def test_a_runs_folder_that_is_a_file(recipe: Recipe) -> None:
    Path("occupied").write_text("a file")
    with pytest.raises(InputError, match="occupied.*cannot be written"):
        run(recipe, runs="occupied")


def test_an_unwritable_runs_folder_is_found_before_any_work(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    real = Path.mkdir

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        if "forbidden" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match="forbidden.* cannot be written: Permission denied.*choose another folder"):
        run(recipe, runs="forbidden")
    assert computed == []


def test_a_loss_that_is_no_number_stops_with_a_remedy(recipe: Recipe) -> None:
    optimizer = {"name": "sgd", "lr": 1e38}
    recipe |= {
        "training": recipe["training"] | {"optimizer": optimizer},
        "head": {"name": "linear", "normalise": False},
    }
    with pytest.raises(
        InputError, match=r"training loss became (nan|inf) in epoch \d+ .*lower training\.optimizer\.lr"
    ):
        run(recipe)
    assert not list(Path("runs").rglob("result.json"))


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:0:0", ""])
def test_an_unknown_device(recipe: Recipe, device: str) -> None:
    with pytest.raises(InputError, match="`device` must be auto, cpu or a GPU"):
        run(recipe, device=device)


def test_a_full_disk_while_writing_a_result(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from imbalance_vlm import files

    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(InputError, match="no space left on the disk"):
            run(recipe)
    assert not [path for path in Path("runs").rglob(".result*") if path.suffix == ".json"], "no half-written file"
    assert run(recipe).scores["overall"] >= 0


# -- result.json -----------------------------------------------------------------------------------------------------


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_results_are_strict_json_and_missing_numbers_come_back_as_nan(recipe: Recipe) -> None:
    result = run(recipe, "evaluation.groups={many: 100, few: 20}")
    text = (result.path / "result.json").read_text()
    record = json.loads(text, parse_constant=no_constants)
    assert record["scores"]["many"] is None
    assert math.isnan(result.scores["many"])
    assert math.isnan(result.table["many"][0])
    assert result.scores["medium"] >= 0
    assert record["classes"]["groups"] == {"many": 0, "medium": 1, "few": 3}
    assert "-" in (imbalance_vlm.results.tables.markdown(result.table))  # type: ignore[attr-defined]


def test_a_result_says_where_its_numbers_come_from(recipe: Recipe) -> None:
    record = run(recipe).record
    assert record["schema"] == 1
    assert record["environment"]["packages"]["torch"]
    assert record["cost"]["trainable_parameters"] == 4 * 16 + 4
    assert record["identity"] | {"encoder": ""} == {
        "recipe": "tiny",
        "dataset": "colours",
        "encoder": "",
        "pretrained": record["identity"]["pretrained"],
        "pretrain_pairs": None,
        "samples_seen": None,
        "tuning": "linear_probe",
        "head": "linear",
        "balancing": "balanced_softmax",
    }


def test_predictions_agree_with_the_scores(recipe: Recipe) -> None:
    result = run(recipe, "training.epochs=20")
    rows = [line.split(",") for line in (result.path / "predictions.csv").read_text().splitlines()[1:]]
    assert 100 * sum(label == predicted for _, label, predicted, _ in rows) / len(rows) == result.scores["overall"]
    assert all((Path(recipe["data"]["root"]) / image).is_file() for image, *_ in rows)


def test_the_resolved_recipe_gives_the_same_run(recipe: Recipe, computed: list[str]) -> None:
    first = run(recipe)
    again = imbalance_vlm.run(first.path / "recipe.resolved.yaml")
    assert again.path == first.path
    assert len(computed) == 1


def test_images_of_one_pixel_do_not_stop_a_run(recipe: Recipe, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = tmp_path / "dots" / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    result = run(recipe, f"data.root={tmp_path / 'dots'}", "tuning={name: linear_probe, views: 2}")
    assert result.record["images"]["train"] == 2


def test_the_device_is_looked_at_last(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished run is read on a machine without the GPU it ran on."""
    run(recipe)
    monkeypatch.setattr(devices, "named", lambda name: pytest.fail("asked for a device"))
    run(recipe, device="cuda:7")


def test_bad_input_leaves_no_empty_folder(images: Path, tiny_clip: str) -> None:
    recipe = {
        "name": "refused",
        "data": {"name": "folder", "root": str(images)},
        "encoder": {"name": tiny_clip},
        "tuning": {"name": "prompt", "method": "coop", "init": None, "n_ctx": 60},
        "head": "text",
        "training": {"epochs": 1, "optimizer": {"lr": 0.1}},
    }
    with pytest.raises(InputError, match="at most 16 tokens"):
        imbalance_vlm.run(recipe)
    assert not list(Path("runs").rglob("seed*"))
