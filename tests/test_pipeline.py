"""The main job, end to end, on tiny pieces."""

from __future__ import annotations

import imbalance_vlm


def test_linear_probe_learns_and_leaves_its_folder(recipe: dict[str, object]) -> None:
    result = imbalance_vlm.run(recipe, {"training.epochs": 30})
    assert result.scores["overall"] > 80
    names = {path.name for path in result.path.iterdir()}
    assert {"recipe.resolved.yaml", "result.json", "metrics.jsonl", "head.safetensors", "predictions.csv"} <= names
    assert "checkpoint.pt" not in names
    assert list(result.table.columns)[:9] == [
        "recipe", "dataset", "encoder", "pretrained", "pretrain_pairs", "tuning", "head", "balancing", "seeds",
    ]  # fmt: skip
