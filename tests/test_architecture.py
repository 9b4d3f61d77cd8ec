"""The shape of the package: which room may import which, and lists that must agree with what is there."""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

import imbalance_vlm

PACKAGE = Path(imbalance_vlm.__file__).parent
ROOT = PACKAGE.parent
FLOW = ("data", "encoders", "heads", "balancing", "tuning", "training", "evaluation", "results")
"""The pipeline: a room may import what comes before it."""

EXCEPTIONS: dict[tuple[str, str], str] = {}
"""(importing module, imported module) that go against the flow, each with its reason."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, also inside functions and for type checking."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.startswith("imbalance_vlm."):
                yield node.module
            elif node.module == "imbalance_vlm":
                yield from (f"imbalance_vlm.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the room they cross")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("imbalance_vlm."))


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


EDGES = sorted({(module_name(path), target) for path in PACKAGE.rglob("*.py") for target in imports(path)})


def against_the_flow() -> set[tuple[str, str]]:
    return {
        (source, target)
        for source, target in EDGES
        if room(source) in FLOW and room(target) in FLOW and FLOW.index(room(target)) > FLOW.index(room(source))
    }


def test_rooms_import_one_way_along_the_pipeline() -> None:
    wrong = sorted(against_the_flow() - set(EXCEPTIONS))
    assert not wrong, "\n".join(f"{source} imports {target}" for source, target in wrong)


def test_no_exception_outlives_its_reason() -> None:
    assert set(EXCEPTIONS) <= against_the_flow()


@pytest.mark.parametrize("room_name", FLOW)
def test_every_room_exists(room_name: str) -> None:
    assert (PACKAGE / room_name / "__init__.py").is_file()


def test_rooms_know_nothing_of_the_runner_the_pipeline_or_the_command_line() -> None:
    above = {
        "imbalance_vlm.assembly",
        "imbalance_vlm.pipeline",
        "imbalance_vlm.runner",
        "imbalance_vlm.cli",
        "imbalance_vlm.showing",
    }
    assert not [edge for edge in EDGES if room(edge[0]) in FLOW and edge[1] in above]


def test_modules_import_no_private_names_of_others() -> None:
    wrong = [
        f"{module_name(path)}: {alias.name} of {node.module}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("imbalance_vlm")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not wrong


def test_the_package_list_of_setup_cfg_is_what_is_there() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = parser["options"]["packages"].split()
    there = {module_name(path) for path in PACKAGE.rglob("__init__.py")}
    assert sorted(listed) == sorted(there | {"imbalance_vlm._recipes"})


def test_every_registered_component_can_be_imported() -> None:
    from imbalance_vlm.components import catalogue

    for kind, registry in catalogue.REGISTRIES.items():
        for entry in registry:
            if kind == "datasets" and entry.name == "icons_lt":
                pytest.importorskip("imbalance_vlm.data.icons_lt")
            assert callable(entry.load()), f"{kind}: {entry.name}"
            assert entry.summary
            assert "default" not in entry.summary or entry.settings()
