"""The settings of a loss: each has an effect, and wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imbalance_vlm import InputError, LongTail
from imbalance_vlm.balancing.losses.factory import create_loss
from imbalance_vlm.components import catalogue
from tests.balancing.losses.oracles import MILD
from tests.contracts import offers, some_value

COMPANIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("class_balanced", "gamma"): {"base": "focal"},
    ("ldam", "defer"): {"beta": 0.9},
}
"""Settings that have an effect only together with another one."""

SETTINGS = [
    (entry.name, setting.name)
    for entry in catalogue.LOSSES
    for setting in entry.settings().values()
    if setting.name != "reduction"
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_every_setting_has_an_effect(name: str, setting: str) -> None:
    """An option that is read wrong, or not at all, would change results silently."""
    value = some_value(catalogue.LOSSES.get(name).settings()[setting])
    batch = torch.randn(10, 5, dtype=torch.float64), torch.arange(10) % 4, torch.randn(10, 6, dtype=torch.float64)
    beside = COMPANIONS.get((name, setting), {})

    def second(extra: dict[str, Any]) -> torch.Tensor:
        """The loss of the second batch: a queue is empty at the first."""
        section = {"name": name, **beside, **extra}
        loss = catalogue.LOSSES.make(section, offers(long_tail=LongTail(MILD), logit_scale=25.0))
        loss(*batch)
        return loss(*batch)

    assert not torch.isclose(second({}), second({setting: value})), f"`{setting}` {value} has no effect"


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("focall", {}, ["unknown loss 'focall'", "Did you mean 'focal'?", "cross_entropy"]),
        ("focal", {"gama": 1}, ["unknown setting `gama`", "Did you mean 'gamma'?"]),
        ("focal", {"gamma": -1}, ["`gamma` must be a number >= 0, got -1"]),
        ("focal", {"reduction": "mean"}, ["`reduction`", "'batch', 'weights' or 'none'"]),
        ("weighted", {"defer": 1.0}, ["`defer` must be a number >= 0 and < 1"]),
        ("class_balanced", {"beta": 1, "base": "bce"}, ["`beta`", "< 1", "`base`", "'cross_entropy' or 'focal'"]),
        ("ldam", {"head_scale": 0}, ["`head_scale` must be a number > 0"]),
        ("logit_adjustment", {"tau": "1", "label_smoothing": 1.0}, ["`tau`", "`label_smoothing`", ">= 0 and < 1"]),
    ],
)
def test_wrong_settings_are_refused_in_words(name: str, settings: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        create_loss(name, [2, 1], **settings)
    assert all(word in str(error.value) for word in words), str(error.value)
