"""One component of each kind, registered as a plug-in does it: with a name that the contracts do not know.

They are the sound components of the contracts, which are imported when they are used, after the registries were read.
"""

from __future__ import annotations

from typing import Any

from imbalance_vlm.components import catalogue

KINDS = (
    "heads",
    "losses",
    "samplers",
    "regularizers",
    "second_stages",
    "post_hoc",
    "gradients",
    "optimizers",
    "schedules",
)


def optimizer(parameters: Any, *, lr: float = 0.1, weight_decay: float = 0.0) -> Any:
    from tests.contracts.test_optimizers import Sound

    return Sound(parameters, lr, weight_decay)


def schedule(epochs: int, steps_per_epoch: int, *, warmup_epochs: float = 0.0, warmup_lr: float = 1e-5) -> Any:
    from tests.contracts.test_schedules import sound

    return sound(epochs, steps_per_epoch, warmup_epochs, warmup_lr)


def pytest_configure() -> None:
    """Called where this module is a plug-in of pytest: `pytest -p tests.contracts.plugged`."""
    builds = {"optimizers": "tests.contracts.plugged:optimizer", "schedules": "tests.contracts.plugged:schedule"}
    more = {"heads": {"provides": frozenset({"trained"})}, "regularizers": {"needs": frozenset({"text.learned"})}}
    for kind in KINDS:
        build = builds.get(kind, f"tests.contracts.test_{kind}:Sound")
        catalogue.REGISTRIES[kind].add("plugged", build, "a component of a plug-in", **more.get(kind, {}))
