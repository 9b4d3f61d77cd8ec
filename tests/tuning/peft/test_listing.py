"""The list of what a method trains, which `show` prints."""

from __future__ import annotations

import math
import re

import pytest

from imbalance_vlm.cli.main import main
from imbalance_vlm.components import catalogue
from imbalance_vlm.tuning.peft.listing import trained_set

COUNTS = {"adaptformer": 617_868, "lora": 589_824, "vpt": 92_160, "full": 85_799_424}
METHODS = [*catalogue.PEFT.names(), "full"]


def entry(name: str) -> catalogue.Entry:
    return catalogue.TUNINGS.get(name) if name == "full" else catalogue.PEFT.get(name)


@pytest.mark.parametrize("name", METHODS)
def test_the_lines_add_up_to_the_number_of_trained_values(name: str) -> None:
    first, *lines = trained_set(entry(name).load()()).splitlines()
    title = re.fullmatch(r"trains in the image tower of ViT-B-16, for 1,000 classes: ([\d,]+) values, and .*", first)
    assert title
    count = int(title[1].replace(",", ""))
    total = 0
    for line in lines:
        parts = re.fullmatch(r"  (\S+) \(([\d, ]+)\)(?: x (\d+))?", line)
        assert parts, line
        assert ("*" in parts[1]) == (parts[3] is not None)
        total += math.prod(int(side) for side in parts[2].split(", ")) * int(parts[3] or 1)
    assert total == count
    assert count == COUNTS.get(name, count)
    assert len(lines) < 30


@pytest.mark.parametrize(
    ("name", "line"), [("bitfit", "  ln_pre.bias (768)"), ("full", "  conv1.weight (768, 3, 16, 16)")]
)
def test_show_prints_the_list(name: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line in lines
    assert any(setting.startswith("  crops: ") for setting in lines), "a setting of the family"
