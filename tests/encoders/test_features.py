"""From images to features: what is cached, and under which key."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from imbalance_vlm.data.folder import FolderReader
from imbalance_vlm.encoders.cache import FeatureCache
from imbalance_vlm.encoders.factory import create_encoder
from imbalance_vlm.encoders.features import CroppedView, feature_source, view_transforms
from imbalance_vlm.encoders.sources import FeatureSource, ImageSource, Source

CPU = torch.device("cpu")


@pytest.fixture
def encoder(tiny_clip: str) -> Any:
    return create_encoder(tiny_clip)


@pytest.fixture
def root(images: Path, tmp_path: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(images, tmp_path / "copy"))


def source(encoder: Any, root: Path, kind: str = "embedding", **how: Any) -> Source:
    split = FolderReader(root=root).read().splits["test"]
    return feature_source(encoder, split, kind, how.pop("views", [encoder.preprocessing]), CPU, "test", **how)


def values(source: Source) -> torch.Tensor:
    ((features, _),) = source.batches([torch.arange(len(source))])
    return features


def entries() -> int:
    return len(list(FeatureCache().entries()))


@torch.no_grad()
def test_features_are_those_of_the_encoder(encoder: Any, root: Path) -> None:
    images = FolderReader(root=root).read().splits["test"].images
    pixels = torch.stack([encoder.preprocessing(images[row]) for row in range(20)])
    torch.testing.assert_close(values(source(encoder, root)), encoder.image_features(pixels, "embedding"))


def test_cached_and_uncached_features_are_equal(encoder: Any, root: Path) -> None:
    cached, uncached = source(encoder, root), source(encoder, root, cache=False)
    assert isinstance(cached, FeatureSource)
    assert isinstance(uncached, ImageSource)
    torch.testing.assert_close(values(cached), values(uncached))
    assert entries() == 1


def test_tokens_are_kept_in_half_precision_up_to_a_limit(
    encoder: Any, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(source(encoder, root, "tokens"), FeatureSource)
    (entry,) = FeatureCache().entries()
    assert entry.bytes == 20 * 5 * 32 * 2
    uncached = source(encoder, root, "tokens", token_limit_gb=entry.bytes / 1e9 / 2)
    assert isinstance(uncached, ImageSource)
    assert "token_limit_gb" in capsys.readouterr().err
    torch.testing.assert_close(values(uncached), values(source(encoder, root, "tokens")), rtol=1e-2, atol=1e-2)


def test_a_changed_image_is_encoded_again(encoder: Any, root: Path) -> None:
    before = values(source(encoder, root))
    path = root / "test" / "blue_car" / "0.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(path)
    after = values(source(encoder, root))
    assert entries() == 2
    assert not torch.allclose(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


@pytest.mark.parametrize("change", ["weights", "precision", "kind", "preprocessing", "view"])
def test_everything_that_the_features_depend_on_is_in_the_key(encoder: Any, root: Path, change: str) -> None:
    source(encoder, root)
    kind, views = "embedding", [encoder.preprocessing]
    if change == "weights":
        encoder.fingerprint = "another"
    if change == "precision":
        encoder.precision = "bf16"
    if change == "preprocessing":
        views = [replace(encoder.preprocessing, interpolation="bilinear")]
    if change == "kind":
        kind = "class_token"
    if change == "view":
        views = view_transforms(encoder, 1, 0.5, True)
    source(encoder, root, kind, views=views)
    assert entries() == 2


def test_the_key_is_the_same_in_another_process(encoder: Any, root: Path, tiny_clip: str) -> None:
    """No memory address, no order of a set: a second encoder object finds the first one's entry."""
    source(encoder, root)
    source(create_encoder(tiny_clip), root)
    assert entries() == 1


def test_a_view_is_a_function_of_the_image_and_its_number(encoder: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    view = CroppedView(encoder.preprocessing, 0, 0.3, True)
    torch.manual_seed(1)
    first = view(image)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(view(image), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "a view draws nothing from the global generator"
    further = [CroppedView(encoder.preprocessing, number, 0.3, True)(image) for number in range(1, 4)]
    assert not any(torch.equal(crop, first) for crop in further)


def test_encoding_leaves_the_random_numbers_alone(encoder: Any, root: Path) -> None:
    """A head starts from the same numbers whether its features were cached or not."""
    before = torch.get_rng_state()
    values(source(encoder, root))
    values(source(encoder, root, cache=False))
    assert torch.equal(torch.get_rng_state(), before)
