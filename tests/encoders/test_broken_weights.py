"""Broken model files: the error names the file and what is wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.broken_inputs import Workspace

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def model(workspace: Workspace) -> Path:
    """A copy of the tiny model's folder."""
    return Path(shutil.copytree(workspace.encoder.removeprefix("local-dir:"), workspace.folder / "model"))


def run_model(workspace: Workspace, model: Path) -> list[str]:
    return workspace.run(encoder={"name": f"local-dir:{model}"})


@pytest.mark.parametrize("size", [5000, 0], ids=["truncated", "empty"])
def test_damaged_weights_are_named(size: int, workspace: Workspace, model: Path) -> None:
    (model / WEIGHTS).write_bytes((model / WEIGHTS).read_bytes()[:size])
    workspace.assert_refused(run_model(workspace, model), WEIGHTS, "could not be read")


def test_weights_of_another_architecture_are_refused(workspace: Workspace, model: Path) -> None:
    config = json.loads((model / CONFIG).read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 64
    (model / CONFIG).write_text(json.dumps(config))
    words = ("holds weights of another architecture", "(64,)", "(32,)")
    workspace.assert_refused(run_model(workspace, model), *words)


def test_a_damaged_model_description_is_named(workspace: Workspace, model: Path) -> None:
    (model / CONFIG).write_text("{")
    workspace.assert_refused(run_model(workspace, model), f"{CONFIG} must hold JSON")


def test_a_model_without_weights_is_refused(workspace: Workspace, model: Path) -> None:
    (model / WEIGHTS).unlink()
    workspace.assert_refused(run_model(workspace, model), "weights", "has none")


def test_a_missing_model_folder_is_refused(workspace: Workspace) -> None:
    command = workspace.run("encoder.name=local-dir:nowhere")
    workspace.assert_refused(command, f"must be a folder with {CONFIG}")


def test_a_folder_in_place_of_weights_is_refused(workspace: Workspace) -> None:
    command = workspace.run(encoder={"name": "ViT-B-32", "pretrained": str(workspace.data)})
    workspace.assert_refused(command, "weights", "data")


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        ({"name": "ViT-B-32", "pretrained": "/"}, "a model's folder must hold weights"),
        ({"name": "ViT-B-32", "pretrained": "pipe"}, "a pipe, a socket or a device"),
        ({"name": "ViT-B-32", "pretrained": "/dev/zero"}, "a pipe, a socket or a device"),
        ({"name": "timm:resnet10t", "pretrained": "pipe"}, "a pipe, a socket or a device"),
        ({"name": "ViT-B-32", "pretrained": "~no_such_user/a"}, "there is no user ~no_such_user"),
        ({"name": "timm:resnet10t", "pretrained": "a\0b"}, "NUL"),
        ({"name": "ViT-B-32", "pretrained": "x" * 300}, "too long"),
        ({"name": "local-dir:~no_such_user/a"}, "there is no user ~no_such_user"),
        ({"name": "hf-hub:../../etc"}, "must be 'hf-hub:ORG/NAME'"),
    ],
    ids=str,
)
def test_what_cannot_be_weights_is_refused_at_once(encoder: dict[str, str], words: str, workspace: Workspace) -> None:
    os.mkfifo(workspace.folder / "pipe")
    workspace.assert_refused(workspace.run(encoder=encoder), words)
