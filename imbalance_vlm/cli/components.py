"""`imbalance-vlm ls`, `show`, `validate` and `schema`: what recipes can name, and what they mean."""

from __future__ import annotations

import argparse
from typing import Any

from imbalance_vlm.cli.common import command
from imbalance_vlm.components import catalogue
from imbalance_vlm.errors import InputError, did_you_mean
from imbalance_vlm.escapes import visible
from imbalance_vlm.files import expanded


def add(commands: Any) -> None:
    parser = command(commands, "ls", list_all, "list recipes and components")
    parser.add_argument("kind", nargs="?", help=f"recipes, {', '.join(catalogue.REGISTRIES)}; everything by default")

    parser = command(commands, "show", show, "print a recipe with every default filled in, or a component's settings")
    parser.add_argument("name", help="a recipe, or the name of a component")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to the recipe")

    parser = command(commands, "validate", validate, "check recipes without running them")
    parser.add_argument("recipes", nargs="+", metavar="recipe", help="YAML files, or names of packaged recipes")

    command(commands, "schema", schema, "print a JSON Schema of recipes, for editors")


def list_all(options: argparse.Namespace) -> None:
    from imbalance_vlm.recipe.load import find_recipe, list_recipes, read_yaml

    catalogue.load_plugins()
    kinds = ["recipes", *catalogue.REGISTRIES]
    if options.kind is not None and options.kind not in kinds:
        hint = did_you_mean(options.kind, kinds)
        raise InputError(f"unknown kind {options.kind!r}.{hint} Available: {', '.join(kinds)}")
    for kind in [options.kind] if options.kind else kinds:
        if kind == "recipes":
            rows = {name: str(read_yaml(find_recipe(name)).get("description", "")) for name in list_recipes()}
        else:
            rows = {}
            for entry in catalogue.REGISTRIES[kind]:
                status = f" [{entry.status}]" if entry.status else ""
                rows[entry.name] = f"{entry.summary}{status}{f' ({entry.paper})' if entry.paper else ''}"
        width = max(map(len, rows), default=0)
        print(f"{kind}:")
        for name, text in rows.items():
            print(f"  {name.ljust(width)}  {text}".rstrip())


def show(options: argparse.Namespace) -> None:
    from imbalance_vlm.cli.show import show_component, show_recipe
    from imbalance_vlm.recipe.load import list_recipes

    catalogue.load_plugins()
    name, is_file = options.name, expanded(options.name).is_file()
    entries = [(kind, registry.get(name)) for kind, registry in catalogue.REGISTRIES.items() if name in registry]
    if entries and not options.overrides:
        print(show_component(entries), end="")
        return
    recipes = list_recipes()
    if entries and name not in recipes and not is_file:
        raise InputError(f"{name!r} is a component, and overrides are for recipes, got {' '.join(options.overrides)}")
    names = [name for registry in catalogue.REGISTRIES.values() for name in registry.names()] + recipes
    if name not in names and not is_file and (hint := did_you_mean(name, names)):
        raise InputError(f"{name!r} is not a component, a recipe file or a packaged recipe.{hint}")
    print(show_recipe(name, options.overrides), end="")


def validate(options: argparse.Namespace) -> None:
    from imbalance_vlm.progress import note
    from imbalance_vlm.recipe.study import plan

    invalid = 0
    for recipe in options.recipes:
        try:
            planned = plan(recipe)
        except InputError as error:
            invalid += 1
            note(f"{recipe}: {error}")
            continue
        print(f"{visible(recipe)}: valid{f', {len(planned.recipes)} runs' if planned.is_study else ''}")
    if invalid:
        raise InputError(f"{invalid} of {len(options.recipes)} recipes are not valid")


def schema(options: argparse.Namespace) -> None:
    import json

    from imbalance_vlm.recipe.json_schema import json_schema

    print(json.dumps(json_schema(), indent=1))
