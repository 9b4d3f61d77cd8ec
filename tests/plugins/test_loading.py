"""Loading plug-ins: one clear error for one that fails, and nothing of it remains."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import imbalance_vlm
from imbalance_vlm.cli.main import main
from imbalance_vlm.cli.show import show_component
from imbalance_vlm.components import catalogue
from imbalance_vlm.components.catalogue import Capability
from imbalance_vlm.components.ranges import Count
from imbalance_vlm.errors import InputError
from imbalance_vlm.heads.base import Head
from imbalance_vlm.recipe.study import plan
from imbalance_vlm.tuning.peft.base import TowerMethod, TunedTower

Recipe = dict[str, Any]
Plugin = Callable[[str, str], None]


@pytest.fixture(autouse=True)
def _same_catalogue_afterwards() -> Iterator[None]:
    before = {registry: list(registry) for registry in catalogue.REGISTRIES.values()}
    yield
    for registry, entries in before.items():
        registry.reset(entries)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    """Installs a module of this name and text as the only plug-in."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        point = EntryPoint(name, name, "imbalance_vlm.plugins")
        monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])
        catalogue.load_plugins.cache_clear()

    yield install
    catalogue.load_plugins.cache_clear()


def test_a_plugin_that_cannot_be_imported_is_named(plugin: Plugin, capsys: pytest.CaptureFixture[str]) -> None:
    plugin("lacking", "import no_such_module\n")
    message = (
        "plug-in 'lacking' cannot be loaded from 'lacking': ModuleNotFoundError: No module named 'no_such_module'; "
        "repair or uninstall it"
    )
    with pytest.raises(InputError) as error:
        imbalance_vlm.list_losses()
    assert str(error.value) == message
    assert main(["ls"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_plugin_with_a_name_that_is_taken_is_named_and_leaves_nothing(plugin: Plugin) -> None:
    lines = ["from imbalance_vlm.components.catalogue import HEADS, LOSSES"]
    lines += ["HEADS.add('wide', dict, 'a head')", "LOSSES.add('focal', dict, 'another loss')"]
    plugin("taken", "\n".join(lines))
    for _ in range(2):  # the second time as well: nothing of the first is left
        with pytest.raises(InputError, match="plug-in 'taken' cannot be loaded .* loss 'focal' is already registered"):
            plan({"name": "any"})
    assert "wide" not in catalogue.HEADS
    assert catalogue.LOSSES.get("focal").paper


def test_a_setting_may_be_called_method() -> None:
    catalogue.POST_HOC.add("by_method", lambda *, method="mean": method, "a correction with a setting `method`")
    section = {"name": "by_method", "method": "median"}
    assert catalogue.POST_HOC.make(section) == "median"


def test_a_capability_that_no_section_brings_is_named(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        catalogue.CAPABILITIES, "corrected", Capability("a post-hoc correction of any kind", "balancing.post_hoc")
    )
    catalogue.LOSSES.add("raw", "imbalance_vlm.balancing.losses.focal:Focal", "a loss", needs=frozenset({"corrected"}))
    recipe["balancing"] = {"loss": "raw"}
    with pytest.raises(InputError, match="loss 'raw' needs a post-hoc correction of any kind; got .*post_hoc none"):
        plan(recipe)


class LastNorms(TowerMethod):
    """Trains the last norms.

    Args:
        last: how many.
    """

    name = "last_norms"

    def __init__(self, *, last: Count) -> None:
        self.last = last

    def inject(self, tuned: TunedTower, num_classes: int) -> None: ...


class ConvolutionsOnly(TowerMethod):
    """Trains convolutions of a network that the one that `show` looks at is not."""

    name = "convolutions_only"

    def inject(self, tuned: TunedTower, num_classes: int) -> None:
        tuned.select(lambda name: "conv9" in name, "a tower with a ninth convolution")


@pytest.mark.parametrize("method", [LastNorms, ConvolutionsOnly])
def test_show_describes_a_method_whose_parameters_it_cannot_list(method: type[TowerMethod]) -> None:
    catalogue.PEFT.add(method.name, method, "a method")
    text = show_component([("peft", catalogue.PEFT.get(method.name))])
    assert text.startswith(f"{method.name} (peft): a method")
    assert "trains in the image tower of" not in text


class FixedHead(Head):
    """Products of a learned map of the features with fixed prototypes."""

    prototypes: Tensor

    def __init__(self, prototypes: Tensor) -> None:
        super().__init__()
        self.map = nn.Linear(prototypes.shape[1], prototypes.shape[1])
        self.register_buffer("prototypes", prototypes)

    def embed(self, features: Tensor) -> Tensor:
        embeddings: Tensor = self.map(features)
        return embeddings

    def classifier(self) -> tuple[Tensor, Tensor | None]:
        return self.prototypes, None


def test_a_head_receives_prototypes_without_settings_for_them(recipe: Recipe) -> None:
    catalogue.HEADS.add("fixed", FixedHead, "fixed prototypes", provides=frozenset({"trained"}))
    recipe |= {"head": "fixed", "training": {"epochs": 1}}
    result = imbalance_vlm.run(recipe, device="cpu")
    with imbalance_vlm.TrainedClassifier.load(result.path, "cpu") as classifier:
        weight, _ = classifier.model.head.classifier()
    torch.testing.assert_close(weight @ weight.T, torch.eye(4) * 4 / 3 - 1 / 3)  # a simplex of four classes
