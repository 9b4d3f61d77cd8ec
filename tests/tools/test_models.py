"""The table of docs/models.md is current: a sample here, all of it in the slow tier."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest

from imbalance_vlm import InputError
from tests.conftest import TINY_CLIP
from tools import models

PAGE = models.PAGE.read_text(encoding="utf-8")
SAMPLE = (
    "ViT-B-16",
    "ViT-B-16-SigLIP",
    "EVA02-B-16",
    "PE-Core-T-16-384",
    "coca_ViT-B-32",
    "roberta-ViT-B-32",
    "vit_relpos_medium_patch16_cls_224",
)


@pytest.fixture(autouse=True)
def _same_open_clip() -> None:
    version = re.search(r"architectures of open_clip (\S+):", PAGE)
    assert version
    if version[1] != open_clip.__version__:
        pytest.skip(f"the table was made with open_clip {version[1]}, this is {open_clip.__version__}")


def row_of(name: str) -> dict[str, str]:
    """The row of an architecture in the page, by way of tuning."""
    lines = [
        [part.strip() for part in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")
    ]
    head = next(line for line in lines if line[0] == "architecture")
    (row,) = (line for line in lines if f"`{name}`" in line[0].split(", "))
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", PAGE, re.MULTILINE))
    answers = {}
    for labels, answer in zip(head[2:], row[2:], strict=True):
        for label in re.split(r", (?!lr decay)", labels):
            answers[label] = reasons[answer.strip("()")] if answer.startswith("(") else answer
    return answers


@pytest.mark.parametrize("name", SAMPLE)
def test_the_page_holds_what_the_functions_answer(name: str) -> None:
    assert row_of(name) == {models.short(way): answer for way, answer in models.supported(name).items()}


def test_every_architecture_and_every_method_is_in_the_table() -> None:
    assert len(models.architectures()) > 100
    for name in models.architectures():
        assert row_of(name)
    assert row_of("ViT-B-16").keys() == {models.short(way) for way in models.ways()}


def test_architectures_that_others_add_to_open_clip_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory: Any = open_clip.factory  # restored after the test
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    config = tmp_path / "ViT-added-here.json"
    config.write_text(json.dumps(TINY_CLIP["model_cfg"]))
    open_clip.add_model_config(config)
    assert "ViT-added-here" in open_clip.list_models()
    assert "ViT-added-here" not in models.architectures()


def test_a_refusal_and_a_failure_are_answers() -> None:
    def refuse() -> None:
        raise InputError("encoder 'ViT-x' is refused by method 'lora'")

    def fail() -> None:
        raise RuntimeError("shapes")

    assert models.answer(refuse, "ViT-x") == "this encoder is refused by this method"
    assert models.answer(fail, "ViT-x").startswith(models.FAILURE)
    assert models.answer(lambda: None, "ViT-x") == "yes"


def test_equal_answers_share_a_row_and_a_column() -> None:
    ways = list(models.ways())
    yes, no = dict.fromkeys(ways, "yes"), dict.fromkeys(ways, "why not")
    lines = models.table({"ViT-B-16": yes, "ViT-B-32": yes, "RN50": no}).splitlines()
    assert "| `ViT-B-16`, `ViT-B-32` | built in | yes |" in lines
    assert "| `RN50` | built in | (1) |" in lines
    assert lines[-1] == "1. why not"


@pytest.mark.slow
def test_the_page_is_current() -> None:
    assert models.main(["--check"]) == 0
