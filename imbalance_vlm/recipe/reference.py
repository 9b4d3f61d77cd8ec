"""The keys of a recipe with their types, defaults and documentation, as data and as Markdown.

Everything comes from the tree in `imbalance_vlm.recipe.schema`, the registries and the docstrings of the constructors;
components of installed plug-ins are included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.ranges import Nested
from imbalance_vlm.components.registry import Entry, Registry
from imbalance_vlm.components.settings import Setting, documented_settings, settings_of
from imbalance_vlm.recipe.schema import RECIPE, REQUIRED, STUDY, Component, Components, Leaf, Section
from imbalance_vlm.values import describe

TEXTS: dict[str, str] = {
    "include": "Recipes that this one builds on: files relative to this one, or names of packaged recipes. The keys of "
    "this file win over theirs.",
    "name": "Name of the run and of its folder.",
    "description": "One line for `imbalance-vlm ls recipes`.",
    "paper": "A published row to print below the result: its `source`, and its scores in percent.",
    "seed": "Seed of the initial weights, the order of the data, and everything else that is random.",
    "data": "The dataset. The settings in the first table belong to every dataset.",
    "encoder": "The model that turns images (and class names) into features: `name` is an open_clip architecture, a "
    "`local-dir:` or `hf-hub:` name, or `timm:MODEL`. The settings in the first table belong to every encoder.",
    "tuning": "Which part of the model is trained.",
    "head": "The classifier on the features.",
    "balancing": "How class imbalance is handled, in training and after it.",
    "balancing.loss": "The loss of a training step.",
    "balancing.sampler": "Which images an epoch contains, and in which order.",
    "balancing.regularizers": "Further terms of the loss, each with its weight.",
    "balancing.gradient": "Changes the gradient before the optimizer uses it.",
    "balancing.second_stage": "Fits another classifier to the embeddings of the trained model.",
    "balancing.post_hoc": "Corrects the logits of the trained model.",
    "training": "The training loop.",
    "training.optimizer": "The optimizer of `torch.optim`.",
    "training.schedule": "The learning rate as a function of the step.",
    "evaluation": "What is measured on the test images.",
    "evaluation.transfer": "Other datasets that the trained model is tested on, by the names of their classes.",
    "evaluation.groups": "The thresholds of many, medium and few, on the number of training images.",
    "evaluation.groups.many": "Classes with more training images than this are many.",
    "evaluation.groups.few": "Classes with fewer training images than this are few.",
    "grid": "Makes the recipe a study: every combination of variants, axes and seeds is one run.",
    "grid.variants": "Named sets of overrides, whose keys may be key paths such as `balancing.loss`.",
    "grid.axes": "Key paths, each with a list of values.",
    "grid.seeds": "The seeds of each combination; a table shows means and standard deviations over them.",
    "table": "The table of a study.",
    "table.columns": "Columns to show; `null` for all that have values.",
    "table.sort": "Column to sort by, best first.",
    "table.baseline": "Row that the other rows are tested against (paired t-test over the seeds, Holm's correction).",
    "table.score": "Score of that test.",
    "table.average": "Axis whose rows are averaged below them.",
    "plot": "The plot of a study. It needs matplotlib.",
    "plot.x": "Column, axis, or `epoch` for the curves of the runs.",
    "plot.y": "Columns to draw.",
    "plot.by": "Column or axis; each of its values has a panel.",
    "plot.each": "`variant` or an axis; each of its values has a line.",
    "plot.log_x": "Whether the x axis is logarithmic.",
    "plot.lines": "Whether the points are joined.",
    "plot.title": "Title of the plot.",
    "plot.x_label": "Label of the x axis.",
    "plot.y_label": "Label of the y axis.",
}
"""What the keys of the tree mean; settings of components and functions are documented where they are defined."""


# -- keys -----------------------------------------------------------------------------------------------------------
def first_sentence(text: str) -> str:
    """The first sentence, without references to modules.

    >>> first_sentence("decay, in [0, 1); see `imbalance_vlm.training`. Zero for none.")
    'Decay, in [0, 1).'
    """
    text = re.sub(r"[;,] see `imbalance_vlm[\w.]*`|\s*\(see `[^`]*`\)", "", text)
    return as_sentence(re.split(r"(?<=\.)\s+(?=[A-Z`\"])", text)[0])


def as_sentence(text: str) -> str:
    """The text with a full stop, and a capital letter at its beginning unless that is a symbol or a name.

    >>> as_sentence("share of the weights"), as_sentence("k > 0 for k crops"), as_sentence("torch.optim.SGD")
    ('Share of the weights.', 'k > 0 for k crops.', 'torch.optim.SGD.')
    """
    word = re.match(r"(?![\w-]+\.\w)(?:a\b|[\w-]{2,})", text)  # neither a symbol nor a dotted name
    if word and word[0].islower():
        text = text[0].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."


@dataclass(frozen=True)
class Key:
    """One key: its name, what it accepts, its default (`REQUIRED` without one) and its documentation."""

    name: str
    annotation: Any
    default: Any
    text: str


def keys_of(*builds: Callable[..., Any]) -> list[Key]:
    """The settings of constructors and functions, of the first one first."""
    keys: dict[str, Key] = {}
    for build in builds:
        texts = documented_settings(build)
        for name, setting in settings_of(build).items():
            keys.setdefault(name, _key(setting, texts.get(name, "")))
    return list(keys.values())


def _key(setting: Setting, text: str) -> Key:
    return Key(setting.name, setting.annotation, REQUIRED if setting.required else setting.default, text)


def settings_at(target: str) -> list[Key]:
    """The settings of the function that a node of the tree names; none without one."""
    return keys_of(Entry("", target, "").load()) if target else []


def leaf_keys(section: Section, path: str) -> list[Key]:
    """The plain values of a section."""
    leaves = [(name, node) for name, node in section.children.items() if isinstance(node, Leaf)]
    return [Key(name, leaf.annotation, leaf.default, text_of(path, name)) for name, leaf in leaves]


def text_of(path: str, name: str) -> str:
    """What the key `name` of the section at `path` means; "" where that is documented elsewhere."""
    return TEXTS.get(f"{path}.{name}".strip("."), "")


def variants(entry: Entry) -> Iterator[tuple[str, Entry, list[Key]]]:
    """Each form of a component: its method ("" where it is not a family), its entry, and its settings."""
    for member in entry.methods or (entry,):
        builds = [member.load()] if member is entry or not entry.build else [member.load(), entry.load()]
        yield ("" if member is entry else member.name), member, keys_of(*builds)


# -- Markdown --------------------------------------------------------------------------------------------------------
def reference() -> str:
    """The recipe reference: every key in a table, section by section."""
    catalogue.load_plugins()
    include = Key("include", str | list[str], [], TEXTS["include"])
    lines = ["## Top level", "", *_table([include, *leaf_keys(RECIPE, "")])]
    for name, node in {**RECIPE.children, **STUDY}.items():
        if not isinstance(node, Leaf):
            lines += _node(node, name, "##")
    return "\n".join(lines)


def _node(node: Component | Components | Section, path: str, heading: str) -> list[str]:
    lines = [f"{heading} {path}", "", TEXTS.get(path, ""), ""]
    if isinstance(node, Section):
        return lines + section_lines(node, path, heading)
    if isinstance(node, Components):
        lines += [f"A list of {node.registry.kind}s, or a single one. None by default.", ""]
    else:
        default = "none" if node.default is None else f"`{node.default}`"
        required = "required" if node.default is REQUIRED else f"by default {default}"
        lines += [f"One {node.registry.kind}, {required}.", ""]
    lines += _table(settings_at(node.shared))
    for titles, entries, keys in _grouped(node.registry):
        lines += [f"{heading}# {titles}", ""]
        if len(entries) > 1:
            lines += [f"- `{entry.name}`: {entry.summary}" for entry in entries]
        else:
            lines += [as_sentence(entries[0].summary)]
        lines += ["", *_table(keys)]
    return lines


def section_lines(node: Section, path: str, heading: str) -> list[str]:
    lines = _table([*leaf_keys(node, path), *settings_at(node.settings)])
    for name, child in node.children.items():
        if not isinstance(child, Leaf):
            lines += _node(child, f"{path}.{name}", f"{heading}#")
    for entry in node.entries or ():
        keys = [key for _, _, keys in variants(entry) for key in keys]
        value = "A mapping of settings" if any(key.default is REQUIRED for key in keys) else "`true`"
        value += ", or a mapping of settings" if keys and value == "`true`" else ""
        default = "on" if entry.name in node.default_entries else "off"
        lines += [
            f"{heading}# {path}.{entry.name}",
            "",
            f"{as_sentence(entry.summary)} {value}; {default} by default.",
            "",
        ]
        lines += _table(keys)
    return lines


def _grouped(registry: Registry) -> Iterator[tuple[str, list[Entry], list[Key]]]:
    """The components of a registry, those with the same settings together under one heading."""
    groups: list[tuple[list[str], list[Entry], list[Key]]] = []
    for entry in registry:
        for method, member, keys in variants(entry):
            title = f"{entry.name}, method {method}" if method else entry.name
            same = groups and keys and [_shown(key) for key in groups[-1][2]] == [_shown(key) for key in keys]
            if same and not method:
                groups[-1][0].append(title)
                groups[-1][1].append(member)
            else:
                groups.append(([title], [member], keys))
    for titles, entries, keys in groups:
        yield ", ".join(titles), entries, keys


def _table(keys: Sequence[Key]) -> list[str]:
    if not keys:
        return []
    rows = [("key", "type", "default", "meaning"), ("---",) * 4, *map(_shown, keys)]
    return [*(f"| {' | '.join(map(_cell, row))} |" for row in rows), ""]


def _cell(text: str) -> str:
    """A text as the cell of a Markdown table; "<" outside of code would start an HTML tag."""
    parts = re.split(r"(`[^`]*`)", text.replace("|", "\\|"))
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def _shown(key: Key) -> tuple[str, str, str, str]:
    if key.default is REQUIRED:
        default = "the name of the file" if key.name == "name" else "required"
    else:
        default = f"`{_flow(key.default)}`"
    return f"`{key.name}`", _kind(key.annotation), default, first_sentence(key.text) if key.text else ""


def _kind(annotation: Any) -> str:
    registry = nested(annotation)
    return f"a list of {catalogue.REGISTRIES[registry].kind}s" if registry else describe(annotation)


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def nested(annotation: Any) -> str:
    """The registry that a setting lists components of; "" for all others."""
    marks = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    return next((mark.registry for mark in marks if isinstance(mark, Nested)), "")
