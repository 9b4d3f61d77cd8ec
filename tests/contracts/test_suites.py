"""Contracts fail on components that are wrong on purpose, and hold for components that are sound."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from tests.contracts import Contract, Suite
from tests.contracts.plugged import KINDS

MODULES = [*(f"tests.contracts.test_{kind}" for kind in KINDS), "tests.evaluation.test_base"]
SUITES: dict[str, Suite] = {name: importlib.import_module(name).SUITE for name in MODULES}
BAD = [(suite, *pair) for suite in SUITES.values() for pair in suite.bad.items()]
SOUND = [
    (suite, component, contract)
    for suite in SUITES.values()
    for component in suite.sound
    for contract in suite.contracts
]


def name_of(value: Any) -> str:
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("suite", "component", "contract"), BAD, ids=name_of)
def test_a_wrong_component_breaks_its_contract(suite: Suite, component: Any, contract: Contract) -> None:
    with pytest.raises(AssertionError):
        contract(suite.of(component))


@pytest.mark.parametrize(("suite", "component", "contract"), SOUND, ids=name_of)
def test_a_sound_component_keeps_every_contract(suite: Suite, component: Any, contract: Contract) -> None:
    contract(suite.of(component))


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_every_contract_is_seen_to_fail(suite: Suite) -> None:
    assert set(suite.bad.values()) == set(suite.contracts)
