"""Measurements that a user can repeat: `imbalance-vlm bench`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from imbalance_vlm.progress import note


def bench_features(epochs: int, live_epochs: int) -> str:
    """A linear probe on all of Icons-LT, on cached features and re-encoding the images every epoch, in one process.

    Re-encoding is timed over `live_epochs` epochs and its time for `epochs` is a multiple of that: every epoch does the
    same work.
    """
    from imbalance_vlm.runs.study import run

    recipe = "icons_lt/linear_probe"
    with tempfile.TemporaryDirectory() as folder:
        note("cached features ...")
        run(recipe, {"training.epochs": 1}, runs=Path(folder, "warm"), device="auto")  # fills the cache
        begun = time.monotonic()
        cached = run(recipe, {"training.epochs": epochs}, runs=Path(folder, "cached"))
        whole = time.monotonic() - begun
        note("re-encoding at every epoch ...")
        live = run(recipe, {"training.epochs": live_epochs, "encoder.cache": False}, runs=Path(folder, "live"))
    cached_seconds = cached.record["cost"]["train_seconds"]  # type: ignore[union-attr]
    live_seconds = live.record["cost"]["train_seconds"] * epochs / live_epochs  # type: ignore[union-attr]
    return (
        f"linear probe, {epochs} epochs on Icons-LT, mini-clip\n"
        f"  cached features:  {cached_seconds:8.1f} s of training ({whole:.1f} s with everything around it)\n"
        f"  re-encoding:      {live_seconds:8.1f} s ({live_epochs} epoch(s) timed)\n"
        f"  ratio:            {live_seconds / cached_seconds:8.1f}\n"
    )
