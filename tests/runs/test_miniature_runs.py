"""Every dataset in miniature, in its real layout, from the check of its files to a tuned tower.

By default each goes through verify, zero-shot, a linear probe, and one prompt and one parameter-efficient method, in
turn; with IMBALANCE_VLM_SLOW=1 through all methods.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import imbalance_vlm
from imbalance_vlm import InputError, assembly, catalogue
from imbalance_vlm.cli import main
from imbalance_vlm.data.few_shot import VARIANTS
from imbalance_vlm.results.result import RunResult
from tests.data.miniatures import MINIATURES, Section

SETS = list(MINIATURES)
TRAINED = [name for name in SETS if name not in VARIANTS]
PROMPTS = catalogue.PROMPTS.names()
TOWERS = [*catalogue.PEFT.names(), "full"]
SLOW = bool(os.environ.get("IMBALANCE_VLM_SLOW"))


def in_turn(methods: list[str]) -> list[tuple[str, str]]:
    """(dataset, method): all of them in the slow tier, else one method a dataset, and every method somewhere."""
    if SLOW:
        return [(name, method) for name in TRAINED for method in methods]
    rows = max(len(TRAINED), len(methods))
    return [(TRAINED[row % len(TRAINED)], methods[row % len(methods)]) for row in range(rows)]


def test_every_method_has_its_turn() -> None:
    for methods in (PROMPTS, TOWERS):
        pairs = in_turn(methods)
        assert {name for name, _ in pairs} == set(TRAINED)
        assert {method for _, method in pairs} == set(methods)


class World:
    """A miniature and what is tried on it."""

    def __init__(self, place: Path, name: str, encoder: str) -> None:
        self.place = place
        self.section: Section = MINIATURES[name](place / "data")
        self.recipe: dict[str, Any] = {
            "name": "miniature",
            "data": self.section,
            "encoder": {"name": encoder},
            "training": {"epochs": 2, "batch_size": 16},
        }

    def run(self, **sections: Any) -> RunResult:
        """The recipe with these sections, its result looked at, and the data left as they were."""
        before = self.files()
        result = imbalance_vlm.run(self.recipe | sections, device="cpu")
        assert isinstance(result, RunResult)
        assert 0 <= result.scores["overall"] <= 100
        assert result.record["identity"]["dataset"] in (self.section["name"], "own", "animals", "shards")
        assert result.record["images"]["test"] > 0
        assert result.record["images"]["skipped"] == 0
        assert self.files() == before
        return result

    def files(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in (self.place / "data").rglob("*"):
            status = path.stat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
        return found


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, tiny_clip: str) -> Iterator[World]:
    assembly.dataset.cache_clear()
    yield World(tmp_path, request.param, tiny_clip)
    assembly.dataset.cache_clear()


@pytest.mark.parametrize("world", SETS, indirect=True)
def test_verify_finds_nothing_wrong(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """But for the published counts, which a miniature does not have."""
    pytest.importorskip("imbalance_vlm.verification.verify")
    file = world.place / "recipe.yaml"
    file.write_text(yaml.safe_dump(world.recipe | {"tuning": "linear_probe"}))
    before = world.files()
    assert main(["data", "verify", str(file), "--ignore", "published", "--workers", "1"]) == 0
    assert "findings: none" in capsys.readouterr().out
    assert world.files() == before


@pytest.mark.parametrize("world", SETS, indirect=True)
def test_zero_shot(world: World) -> None:
    result = world.run(tuning="zero_shot", head="text")
    assert result.record["cost"]["trainable_parameters"] == 0


@pytest.mark.parametrize("world", TRAINED, indirect=True)
def test_linear_probe(world: World) -> None:
    result = world.run(tuning="linear_probe", head="linear", balancing={"loss": "balanced_softmax"})
    classes = len(result.record["classes"]["names"])
    assert result.record["cost"]["trainable_parameters"] == (16 + 1) * classes
    assert sum(result.record["classes"]["train_counts"]) == result.record["images"]["train"]


@pytest.mark.parametrize(("world", "method"), in_turn(PROMPTS), indirect=["world"])
def test_prompts(world: World, method: str) -> None:
    tuning = {"name": "prompt", "method": method, "views": 1}
    world.recipe["data"] = world.section | {"templates": "simple"}
    result = world.run(tuning=tuning, head="text", training={"epochs": 1, "batch_size": 16})
    assert result.record["identity"]["tuning"] == "prompt"
    assert result.record["cost"]["trainable_parameters"] > 0


@pytest.mark.parametrize(("world", "method"), in_turn(TOWERS), indirect=["world"])
def test_towers(world: World, method: str) -> None:
    tuning = {"name": "full"} if method == "full" else {"name": "peft", "method": method}
    result = world.run(
        tuning=tuning,
        head={"name": "cosine", "init": "text"},
        encoder=world.recipe["encoder"] | {"features": "class_token"},
        balancing={"loss": "logit_adjustment"},
        training={"epochs": 1, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.01}},
    )
    classes = len(result.record["classes"]["names"])
    assert result.record["cost"]["trainable_parameters"] > 32 * classes, "more than the head"


@pytest.mark.parametrize("world", list(VARIANTS), indirect=True)
@pytest.mark.parametrize("tuning", ["linear_probe", "prompt", "peft"])
def test_what_is_for_testing_alone_is_not_trained_on(world: World, tuning: str) -> None:
    sections: dict[str, Any] = {"tuning": tuning, "head": "text" if tuning == "prompt" else "cosine"}
    if tuning != "linear_probe":
        sections["tuning"] = {"name": tuning, "method": "coop" if tuning == "prompt" else "lora"}
    with pytest.raises(InputError, match="for testing alone"):
        world.run(**sections)
