"""The architecture of the package: imports run one way, and its lists agree with its files."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

import imbalance_vlm

PACKAGE = Path(imbalance_vlm.__file__).parent
NAME = PACKAGE.name

Edge = tuple[str, str]


def module_name(path: Path, package: Path) -> str:
    return ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports: at the top, inside functions and for type checking alike."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: relative imports hide the folder that they cross into")
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == NAME:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == NAME)


def places(package: Path) -> set[str]:
    """The folders and the top-level modules of a package, its own __init__ included."""
    folders = {path.parent.name for path in package.glob("*/*.py")}
    return folders | {path.stem for path in package.glob("*.py")}


def place(module: str, package: Path) -> str:
    """The folder or top-level module that a module lies in; names that the package itself exports lie in __init__."""
    _, _, inside = module.partition(".")
    part = inside.split(".")[0]
    return part if part in places(package) else "__init__"


def edges(package: Path) -> set[Edge]:
    """(importing place, imported place), for every folder and every top-level module of a package."""
    return {
        (source, target)
        for path in package.rglob("*.py")
        for module in imports(path)
        if (source := place(module_name(path, package), package)) != (target := place(module, package))
    }


def cycles(graph: set[Edge]) -> list[set[str]]:
    """The strongly connected components of more than one place."""
    names = sorted({name for edge in graph for name in edge})
    rows, columns = zip(*((names.index(source), names.index(target)) for source, target in graph), strict=True)
    matrix = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(names)))
    _, labels = connected_components(matrix, directed=True, connection="strong")
    groups = ({names[row] for row in np.flatnonzero(labels == label)} for label in np.unique(labels))
    return [group for group in groups if len(group) > 1]


def test_folders_and_top_level_modules_import_one_way() -> None:
    assert cycles(edges(PACKAGE)) == []


def test_the_import_graph_covers_every_folder_and_top_level_module() -> None:
    assert {name for edge in edges(PACKAGE) for name in edge} == places(PACKAGE)


@pytest.mark.parametrize(
    "planted",
    [
        "from imbalance_vlm.runs.study import run\n",
        "def late() -> None:\n    from imbalance_vlm.runs import study\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import imbalance_vlm.runs.study\n",
        "from imbalance_vlm import run\n",
    ],
    ids=["at the top", "inside a function", "for type checking", "from the package itself"],
)
def test_a_planted_upward_import_closes_a_cycle(planted: str, tmp_path: Path) -> None:
    copy = tmp_path / NAME
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    with (copy / "data" / "dataset.py").open("a") as stream:
        stream.write(planted)
    assert any("data" in cycle for cycle in cycles(edges(copy)))


def test_the_ground_floor_does_not_import_torch() -> None:
    heavy = {"torch", "timm", "open_clip", "torchvision", "pandas", "sklearn", "PIL", "scipy"}
    for path in (PACKAGE / "components").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not heavy & {name.split(".")[0] for name in names}, path


def test_modules_import_no_private_names_of_others() -> None:
    wrong = [
        f"{module_name(path, PACKAGE)}: {alias.name} of {node.module}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME)
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]
    assert not wrong


def test_every_file_of_the_package_is_part_of_a_wheel() -> None:
    """setup.py finds folders with an __init__.py; setup.cfg names all files that are not modules."""
    modules = {path.parent for path in PACKAGE.rglob("*.py")}
    assert all((folder / "__init__.py").is_file() for folder in modules)
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    data = {path for path in files if path.suffix != ".py" and path.parts[0] != "assets"}
    assert data == {Path("py.typed")}


def test_no_component_is_known_by_its_name_outside_the_catalogue() -> None:
    """Code that checks, builds or runs a recipe compares no section's name with that of a component."""
    from imbalance_vlm.components import catalogue

    names = {entry.name for registry in catalogue.REGISTRIES.values() for entry in registry}
    checked = ("components", "recipe", "runs", "training", "tuning", "heads", "verification")
    files = [path for folder in checked for path in (PACKAGE / folder).rglob("*.py") if path.name != "catalogue.py"]
    wrong = [f"{path.name}:{line}: {name}" for path in files for line, name in compared_names(path, names)]
    assert not wrong, "\n".join(wrong)


def compared_names(path: Path, names: set[str]) -> Iterator[tuple[int, str]]:
    """(line, name) of each comparison of a section's name or method with the name of a component."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Compare):
            continue
        operands = [node.left, *node.comparators]
        subscripts = {ast.unparse(operand.slice) for operand in operands if isinstance(operand, ast.Subscript)}
        if not subscripts & {"'name'", "'method'"}:
            continue
        for operand in operands:
            for constant in ast.walk(operand):
                if isinstance(constant, ast.Constant) and constant.value in names:
                    yield node.lineno, str(constant.value)


def test_every_registered_component_can_be_imported() -> None:
    from imbalance_vlm.components import catalogue

    for kind, registry in catalogue.REGISTRIES.items():
        for entry in registry:
            if entry.build:
                assert callable(entry.load()), f"{kind}: {entry.name}"
            assert entry.summary
