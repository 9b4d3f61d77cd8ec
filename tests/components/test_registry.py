"""Entries: what a component needs and provides, and how one is made."""

from __future__ import annotations

from typing import Any

import pytest

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry, Registry
from imbalance_vlm.errors import InputError


class Loss:
    def __init__(self, long_tail: str, logit_scale: float | None = None, *, gamma: float = 2.0) -> None:
        self.arguments = long_tail, logit_scale, gamma


class Method:
    def __init__(self, *, rank: int = 4) -> None:
        self.rank = rank


class Family:
    def __init__(self, method: Method, *, crops: str = "growing") -> None:
        self.method, self.crops = method, crops


def offers(**values: Any) -> Any:
    return {name: lambda _section, value=value: value for name, value in values.items()}


def test_positional_parameters_come_from_the_run_and_keywords_from_the_recipe() -> None:
    entry = Entry("mine", Loss, "a loss")
    component = entry.make({"name": "mine", "gamma": 3.0}, offers(long_tail="counts", width=4))
    assert component.arguments == ("counts", None, 3.0)
    assert entry.make({"name": "mine"}, offers(long_tail="counts", logit_scale=25.0)).arguments[1] == 25.0


def test_an_offer_can_depend_on_the_section_that_asks() -> None:
    component = Entry("mine", Loss, "").make({"name": "mine"}, {"long_tail": lambda section: section["name"]})
    assert component.arguments[0] == "mine"


def test_a_parameter_that_the_run_does_not_offer_is_refused() -> None:
    with pytest.raises(InputError, match=r"offers here \(width\), got `long_tail`; make it keyword-only"):
        Entry("mine", Loss, "").make({"name": "mine"}, offers(width=4))


def family() -> Registry:
    methods = Registry("method")
    methods.add("lora", Method, "low rank", provides=frozenset({"small"}))
    registry = Registry("tuning", needs=frozenset({"tower"}))
    registry.add("peft", Family, "a family", methods=methods, provides=frozenset({"training"}))
    return registry


def test_a_family_is_made_around_its_member() -> None:
    registry = family()
    assert list(registry.get("peft").settings()) == ["rank", "crops"]
    component = registry.make({"name": "peft", "method": "lora", "rank": 8, "crops": "none"})
    assert (component.crops, component.method.rank) == ("none", 8)


def test_a_family_and_its_member_provide_together() -> None:
    registry = family()
    assert registry.provided({"name": "peft", "method": "lora"}) == {"training", "small"}
    assert registry.needed({"name": "peft", "method": "lora"}) == {"tower"}


def test_capabilities_can_follow_from_settings_and_their_defaults() -> None:
    cosine = catalogue.HEADS.get("cosine")
    assert "cosines" in cosine.provided({"name": "cosine"})
    assert "cosines" not in cosine.provided({"name": "cosine", "learn_scale": True})
    assert cosine.needed({"name": "cosine"}) == {"text"}
    assert cosine.needed({"name": "cosine", "init": "class_mean"}) == frozenset()


def test_a_name_that_is_taken_is_refused() -> None:
    registry = family()
    with pytest.raises(InputError, match="tuning 'peft' is already registered"):
        registry.add("peft", Family, "again")


def test_the_prefix_of_a_model_name_chooses_the_encoder_adapter() -> None:
    assert catalogue.ENCODERS.get("timm:resnet50").name == "timm"
    assert catalogue.ENCODERS.get("ViT-B-16").name == "open_clip"
    assert catalogue.ENCODERS.get("hf-hub:org/model").name == "open_clip"


def test_every_capability_that_a_component_names_is_described() -> None:
    for registry in catalogue.REGISTRIES.values():
        for entry in registry:
            section = {"name": entry.name}
            for need in registry.needed(section) | registry.provided(section):
                assert set(need.split("|")) <= set(catalogue.CAPABILITIES), f"{registry.kind} {entry.name}: {need}"
