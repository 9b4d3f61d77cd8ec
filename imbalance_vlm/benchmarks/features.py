"""Training on cached features against encoding the images in every epoch: `imbalance-vlm bench features`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from imbalance_vlm.benchmarks.measurement import check_at_least_one
from imbalance_vlm.progress import note
from imbalance_vlm.results.result import RunResult, StudyResult
from imbalance_vlm.runs.study import run


def bench_features(epochs: int = 50, live_epochs: int = 1, device: str = "auto") -> str:
    """A linear probe on all of Icons-LT: on cached features, and encoding the images again in every epoch.

    Every epoch of encoding does the same work. A few of them are therefore timed, and their time is scaled to `epochs`.

    Args:
        epochs: epochs to compare.
        live_epochs: epochs of encoding that are run.
        device: "auto" (a GPU where there is one), "cpu", "cuda", ...

    Raises:
        InputError: a number below 1, or a device that this machine does not have.
    """
    check_at_least_one(epochs=epochs, live_epochs=live_epochs)
    recipe = "icons_lt/linear_probe"
    with tempfile.TemporaryDirectory() as folder:
        note("cached features ...")
        run(recipe, {"training.epochs": 1}, runs=Path(folder, "warm"), device=device)  # fills the cache
        begun = time.monotonic()
        cached = train_seconds(run(recipe, {"training.epochs": epochs}, runs=Path(folder, "cached"), device=device))
        total = time.monotonic() - begun
        note("encoding in every epoch ...")
        overrides = {"training.epochs": live_epochs, "encoder.cache": False}
        live = train_seconds(run(recipe, overrides, runs=Path(folder, "live"), device=device)) * epochs / live_epochs
    return (
        f"linear probe, {epochs} epochs on Icons-LT, mini-clip\n"
        f"  cached features:  {cached:8.1f} s of training ({total:.1f} s for the whole run)\n"
        f"  encoding:         {live:8.1f} s ({live_epochs} epoch(s) timed)\n"
        f"  ratio:            {live / cached:8.1f}\n"
    )


def train_seconds(result: RunResult | StudyResult) -> float:
    """Seconds of training of a single run."""
    if isinstance(result, StudyResult):
        raise TypeError("a study has several training times")
    return float(result.record["cost"]["train_seconds"])
