"""The settings of all tunings: which there are, which only affect the computation, and that each is documented."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import ComputeOnly
from imbalance_vlm.components.settings import documented_settings, settings_of
from imbalance_vlm.tuning.prompt.settings import Prompt

SECTIONS = [
    *({"name": entry.name} for entry in catalogue.TUNINGS if entry.methods is None),
    *({"name": "prompt", "method": name} for name in catalogue.PROMPTS.names()),
    *({"name": "peft", "method": name} for name in catalogue.PEFT.names()),
]
every = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: "/".join(section.values()))
CONTEXT: dict[str, Any] = {"n_ctx": None, "init": "a photo of a", "position": "end", "suffix": ".", "csc": False}
CROPS: dict[str, Any] = {"views": 4, "min_scale": 0.08}
MEMORY: dict[str, Any] = {"memory_gb": 2.0, "chunk": None}
COOP = CONTEXT | CROPS | MEMORY
DEEP = {"n_ctx": 2, "init": "a photo of a", "suffix": ".", "depth": 9, "views": None, "min_scale": 0.08} | MEMORY


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("coop", COOP),
        ("cocoop", {name: default for name, default in COOP.items() if name != "csc"}),
        ("kgcoop", COOP | {"weight": 8.0, "target": "template"}),
        ("prograd", COOP | {"strength": 1.0, "temperature": 1.0}),
        ("vpt", {"tokens": 10, "deep": True, "views": None, "min_scale": 0.08}),
        ("ivlp", DEEP | {"tokens": 2}),
        ("maple", DEEP),
        (
            "promptsrc",
            DEEP | {"n_ctx": 4, "tokens": 4, "text": 25.0, "image": 10.0, "logits": 1.0} | {"mean": 15.0, "std": 1.0},
        ),
    ],
)
def test_each_prompt_method_has_these_settings_and_defaults(method: str, expected: dict[str, Any]) -> None:
    settings = catalogue.PROMPTS.get(method).settings()
    assert {name: setting.default for name, setting in settings.items()} == expected


@every
def test_only_the_memory_of_the_text_tower_has_no_effect_on_results(section: dict[str, str]) -> None:
    settings = catalogue.TUNINGS.get(section["name"]).settings(section)
    marked = {name for name, setting in settings.items() if setting.marked(ComputeOnly) is not None}
    assert marked == settings.keys() & {"memory_gb", "chunk"}


@every
def test_every_setting_is_documented_in_its_method_or_group(section: dict[str, str]) -> None:
    entry = catalogue.TUNINGS.get(section["name"])
    for build in {entry.member(section).load(), *([entry.load()] if entry.build else [])}:
        documented = documented_settings(build)
        assert [name for name in settings_of(build) if not documented.get(name)] == []


def test_random_and_null_mean_a_start_without_words() -> None:
    assert [Prompt(init=init).words for init in ("random", None, "a photo of")] == [None, None, "a photo of"]
