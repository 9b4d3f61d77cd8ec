"""Broken run folders, results, weights and caches: one clear error, or repaired where nothing is lost."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from tests.broken_inputs import Workspace


def test_a_learning_rate_that_diverges_is_named(workspace: Workspace) -> None:
    command = workspace.run("training.epochs=20", "training.optimizer.lr=1e38")
    workspace.assert_refused(command, "training loss became", "lower training.optimizer.lr")


# -- writing ---------------------------------------------------------------------------------------------------------
def test_a_file_in_place_of_the_runs_folder_is_refused(workspace: Workspace) -> None:
    (workspace.folder / "full").write_text("")
    workspace.assert_refused(workspace.run("--runs", "full"), "cannot be written", "choose another folder")


# -- results ---------------------------------------------------------------------------------------------------------
def test_a_truncated_result_is_named(workspace: Workspace) -> None:
    file = workspace.finished_run() / "result.json"
    file.write_text(file.read_text()[:200])
    workspace.assert_refused(workspace.run(), "result.json must hold JSON", "--force")


def test_a_folder_in_place_of_a_result_is_named(workspace: Workspace) -> None:
    file = workspace.finished_run() / "result.json"
    file.unlink()
    file.mkdir()
    workspace.assert_refused(workspace.run(), "result.json")


def test_a_table_into_a_folder_that_is_a_file_is_refused(workspace: Workspace) -> None:
    workspace.finished_run()
    (workspace.folder / "file").write_text("")
    workspace.assert_refused(["table", "runs", "--out", "file/table.csv"], "cannot be written")


# -- predicting ------------------------------------------------------------------------------------------------------
def test_truncated_weights_are_named(workspace: Workspace) -> None:
    run = workspace.finished_run()
    file = run / "head.safetensors"
    file.write_bytes(file.read_bytes()[:60])
    workspace.assert_refused(workspace.predict(run), "head.safetensors", "damaged")


def test_weights_of_another_head_are_refused(workspace: Workspace) -> None:
    run = workspace.finished_run()
    save_file({"weight": np.zeros((2, 2), np.float32)}, run / "head.safetensors")
    workspace.assert_refused(workspace.predict(run), "head.safetensors holds weights of another head")


def test_missing_weights_are_named(workspace: Workspace) -> None:
    run = workspace.finished_run()
    (run / "head.safetensors").unlink()
    workspace.assert_refused(workspace.predict(run), "no weights at", "head.safetensors")


def test_a_missing_recipe_of_a_run_is_named(workspace: Workspace) -> None:
    run = workspace.finished_run()
    (run / "recipe.resolved.yaml").unlink()
    workspace.assert_refused(workspace.predict(run), "recipe.resolved.yaml")


def test_an_incomplete_recipe_of_a_run_is_named(workspace: Workspace) -> None:
    run = workspace.finished_run()
    (run / "recipe.resolved.yaml").write_text("name: x\n")
    workspace.assert_refused(
        workspace.predict(run), "recipe.resolved.yaml must be a complete recipe", "lacks 'data', 'encoder'", "--force"
    )


def test_predictions_into_a_folder_are_refused(workspace: Workspace) -> None:
    (workspace.folder / "out").mkdir()
    command = [*workspace.predict(workspace.finished_run()), "--out", "out"]
    workspace.assert_refused(command, "cannot be written", "out")


# -- what is made again ----------------------------------------------------------------------------------------------
def test_truncated_cached_features_are_computed_again(workspace: Workspace) -> None:
    workspace.finished_run()
    files = list((workspace.folder / "cache" / "features").rglob("features.bin"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:10])
    workspace.assert_works(workspace.run("--force"))


def test_a_run_with_a_truncated_checkpoint_starts_again(workspace: Workspace) -> None:
    run = workspace.finished_run()
    (run / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut")
    (run / "result.json").unlink()
    workspace.assert_works(workspace.run())
