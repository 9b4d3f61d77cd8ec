"""A JSON Schema of recipes, for editors: names, keys, types and ranges are checked while a recipe is written."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from imbalance_vlm.components import catalogue
from imbalance_vlm.components.registry import Entry
from imbalance_vlm.recipe.reference import TEXTS, Key, keys_of, nested, settings_at, variants
from imbalance_vlm.recipe.schema import RECIPE, REQUIRED, STUDY, Component, Components, Leaf, Node, Section
from imbalance_vlm.values import Range

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """A JSON Schema (draft 2020-12) of recipe files, for editors.

    It checks what is written: names, keys, types and ranges. A file that includes others may leave out anything, so
    missing keys are only reported for files without `include` and `grid`. Which components go together is not part of
    it; `imbalance-vlm validate` checks that.
    """
    catalogue.load_plugins()
    builder = SchemaBuilder()
    properties = {
        "include": {**_value(str | list[str]), "description": TEXTS["include"]},
        **{name: builder.node(node, name) for name, node in RECIPE.children.items()},
        **{name: builder.node(node, name) for name, node in STUDY.items()},
    }
    properties["grid"] = builder.grid(properties["grid"])
    partial = {"anyOf": [{"required": ["include"]}, {"required": ["grid"]}]}
    return {
        "$schema": DIALECT,
        "title": "imbalance_vlm recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "if": {"not": partial},
        "then": _complete(RECIPE),
        "$defs": builder.definitions,
    }


@dataclass
class SchemaBuilder:
    """Makes the schema of each node once; components and sections are definitions that others refer to."""

    definitions: dict[str, Any] = field(default_factory=dict)

    def node(self, node: Node, path: str) -> dict[str, Any]:
        described = {"description": TEXTS[path]} if path in TEXTS else {}
        if isinstance(node, Leaf):
            return {**self.value(node.annotation), **_default(node.default), **described}
        if isinstance(node, Section):
            return {**self.section(node, path), **described}
        single = self.component(node)
        if isinstance(node, Components):
            return {"anyOf": [single, {"type": "array", "items": single}], **described}
        return {"anyOf": [single, {"type": "null"}], **described} if node.default is None else {**single, **described}

    def section(self, node: Section, path: str) -> dict[str, Any]:
        properties = {name: self.node(child, f"{path}.{name}") for name, child in node.children.items()}
        properties |= {key.name: self.key(key) for key in settings_at(node.settings)}
        properties |= {entry.name: self.switch(entry) for entry in node.entries or ()}
        self.definitions[path] = {"type": ["object", "null"], "properties": properties, "additionalProperties": False}
        return {"$ref": f"#/$defs/{path}"}

    def component(self, node: Component | Components) -> dict[str, Any]:
        name = node.registry.kind.replace(" ", "_")
        if name not in self.definitions:
            self.definitions[name] = {}  # a component may nest others of its kind
            self.definitions[name] = self._component(node)
        return {"$ref": f"#/$defs/{name}"}

    def _component(self, node: Component | Components) -> dict[str, Any]:
        """A name, or a mapping with a name. Which settings go with the name stands in `allOf`, one rule per name."""
        shared = settings_at(node.shared)
        forms = [
            (entry.name, method, [*keys, *shared]) for entry in node.registry for method, _, keys in variants(entry)
        ]
        schemas: dict[str, list[dict[str, Any]]] = {}
        for key in (key for _, _, keys in forms for key in keys):
            if (schema := self.key(key)) not in schemas.setdefault(key.name, []):
                schemas[key.name].append(schema)
        free = node.registry is catalogue.ENCODERS  # the name is a model's, not an entry's
        names = {"type": "string"} if free else {"enum": node.registry.names()}
        methods = list(dict.fromkeys(method for _, method, _ in forms if method))
        properties: dict[str, Any] = {"name": names} | ({"method": {"enum": methods}} if methods else {})
        properties |= {key: kinds[0] if len(kinds) == 1 else {"anyOf": kinds} for key, kinds in schemas.items()}
        families = [(entry.name, entry.methods.names()) for entry in node.registry if entry.methods]
        rules = [_rule({"name": name}, {"properties": {"method": {"enum": members}}}) for name, members in families]
        rules += [] if free else [self._form(*form, schemas) for form in forms]
        mapping = {"type": "object", "properties": properties, "additionalProperties": False}
        return {"anyOf": [names, mapping | ({"allOf": rules} if rules else {})]}

    def _form(self, name: str, method: str, keys: list[Key], schemas: Mapping[str, list[Any]]) -> dict[str, Any]:
        """The settings of one component: which there are, and their schemas where other components differ."""
        chosen = {"name": name} | ({"method": method} if method else {})
        then: dict[str, Any] = {"propertyNames": {"enum": [*chosen, *(key.name for key in keys)]}}
        specific = {key.name: self.key(key) for key in keys if len(schemas[key.name]) > 1}
        return _rule(chosen, then | ({"properties": specific} if specific else {}))

    def key(self, key: Key) -> dict[str, Any]:
        return {
            **self.value(key.annotation),
            **_default(key.default),
            **({"description": key.text} if key.text else {}),
        }

    def value(self, annotation: Any) -> dict[str, Any]:
        if not (name := nested(annotation)):
            return _value(annotation)
        registry = catalogue.REGISTRIES[name]
        nodes = (node for node in _components(RECIPE) if node.registry is registry)
        item = self.component(next(nodes, Component(registry)))
        return {"anyOf": [item, {"type": "array", "items": item}]}

    def switch(self, entry: Entry) -> dict[str, Any]:
        """A component that is a key of its section: true, false, null or its settings."""
        keys = [key for _, _, keys in variants(entry) for key in keys]
        properties = {key.name: self.key(key) for key in keys}
        settings = {"type": "object", "properties": properties, "additionalProperties": False}
        complete = all(key.default is not REQUIRED for key in keys)  # or `true` would leave one open
        switches = {"enum": [True, False, None] if complete else [False, None]}
        return {"anyOf": [switches, settings], "description": entry.summary}

    def grid(self, reference: dict[str, Any]) -> dict[str, Any]:
        """The section `grid`, whose variants and axes name key paths of the rest of the recipe."""
        paths: dict[str, Any] = {}
        deeper: dict[str, Any] = {}  # of a setting that is itself a mapping, such as `paper`
        for path, schema, is_mapping in self._paths(RECIPE, ""):
            paths[path] = schema
            deeper |= {f"^{re.escape(path)}[.]": {}} if is_mapping else {}
        overrides = {"type": ["object", "null"], "properties": paths, "patternProperties": deeper}
        self.definitions["overrides"] = {**overrides, "additionalProperties": False}
        axes = {path: {"type": "array", "minItems": 1, "items": schema} for path, schema in paths.items()}
        keys = self.definitions["grid"]["properties"]
        _mapping_in(keys["variants"])["additionalProperties"] = {"$ref": "#/$defs/overrides"}
        _mapping_in(keys["axes"]).update(properties=axes, additionalProperties=False)
        return reference

    def _paths(self, section: Section, prefix: str) -> Iterator[tuple[str, dict[str, Any], bool]]:
        """Every key path of the tree that an override may name, its schema, and whether its value is a mapping."""
        for name, node in section.children.items():
            path = f"{prefix}{name}"
            yield path, self.node(node, path), isinstance(node, Leaf) and _is_mapping(node.annotation)
            if isinstance(node, Section):
                yield from self._paths(node, f"{path}.")
                for key in settings_at(node.settings):
                    place = f"#/$defs/{path}/properties/{key.name}"
                    yield f"{path}.{key.name}", {"$ref": place}, _is_mapping(key.annotation)
                for entry in node.entries or ():
                    place = f"#/$defs/{path}/properties/{entry.name}"
                    yield f"{path}.{entry.name}", {"$ref": place}, False
                    for key in (key for _, _, keys in variants(entry) for key in keys):
                        pointer = f"{place}/anyOf/1/properties/{key.name}"
                        yield f"{path}.{entry.name}.{key.name}", {"$ref": pointer}, _is_mapping(key.annotation)
            elif isinstance(node, Component):
                kind = node.registry.kind.replace(" ", "_")
                for key in self.definitions[kind]["anyOf"][1]["properties"]:
                    yield f"{path}.{key}", {"$ref": f"#/$defs/{kind}/anyOf/1/properties/{key}"}, False


def _rule(chosen: Mapping[str, str], then: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for a mapping with these names."""
    condition = {"properties": {key: {"const": value} for key, value in chosen.items()}, "required": list(chosen)}
    return {"if": condition, "then": then}


def _components(section: Section) -> Iterator[Component | Components]:
    for node in section.children.values():
        if isinstance(node, Section):
            yield from _components(node)
        elif isinstance(node, (Component, Components)):
            yield node


def _complete(section: Section) -> dict[str, Any]:
    """What a recipe that stands alone must name. The name of the recipe has a default, that of its file."""
    required = [
        name
        for name, node in section.children.items()
        if not isinstance(node, Section) and node.default is REQUIRED and name != "name"
    ]
    nodes = {name: node for name, node in section.children.items() if isinstance(node, Component)}
    return {"required": required, "properties": {name: _complete_component(node) for name, node in nodes.items()}}


def _complete_component(node: Component) -> dict[str, Any]:
    rules = []
    for entry in node.registry if node.registry is not catalogue.ENCODERS else ():
        needed = [] if entry.methods else [key.name for key in keys_of(entry.load()) if key.default is REQUIRED]
        if needed:
            rules.append({"if": {"properties": {"name": {"const": entry.name}}}, "then": {"required": needed}})
    named = {"required": ["name"]} if node.default is REQUIRED else {}
    return {"if": {"type": "object"}, "then": named | ({"allOf": rules} if rules else {})}


_TYPES: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": "string"},
    Path: {"type": "string", "minLength": 1},
    type(None): {"type": "null"},
    Any: {},
}


def _mapping_in(schema: dict[str, Any]) -> dict[str, Any]:
    """The part of a schema that a mapping is held to."""
    return next(part for part in (schema, *schema.get("anyOf", ())) if part.get("type") == "object")


def _is_mapping(annotation: Any) -> bool:
    """Whether a value may be a mapping, whose keys an override may then name one by one."""
    return "object" in str(_value(annotation))


def _value(annotation: Any) -> dict[str, Any]:
    """What an annotation accepts, as a JSON Schema; see `imbalance_vlm.components.settings.fits`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        schema = _value(arguments[0])
        for bound in (extra for extra in arguments[1:] if isinstance(extra, Range)):
            limits = {
                "exclusiveMinimum": bound.above,
                "minimum": bound.at_least,
                "exclusiveMaximum": bound.below,
                "maximum": bound.at_most,
            }
            schema |= {name: limit for name, limit in limits.items() if limit is not None}
        return schema
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_value(option) for option in arguments]}
    if origin in (list, tuple, Sequence):
        return {"type": "array", **({"items": _value(arguments[0])} if arguments else {})}
    if origin in (dict, Mapping):
        keys = {"propertyNames": _value(arguments[0])} if get_origin(arguments[0]) is Literal else {}
        return {"type": "object", **keys, "additionalProperties": _value(arguments[1])}
    return dict(_TYPES.get(annotation, {}))


def _default(value: Any) -> dict[str, Any]:
    if value is REQUIRED:
        return {}
    return {"default": list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value}
