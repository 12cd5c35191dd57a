"""The house: which part of the package may import which. Every import counts, those inside functions too."""

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.places import REPOSITORY

PACKAGE = REPOSITORY / "toolkit"
# From the ground up. A box imports boxes on the floors below its own, so no two stages know each other.
FLOORS = [
    {"core"},
    {"formats", "kernels", "prompt"},
    {"llamacpp", "model", "ollama", "report"},
    {"ask", "doctor", "evaluate", "export", "init", "prepare", "register", "train", "validate"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]


def imports(path: Path) -> Iterator[str]:
    """The boxes that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "toolkit":
            yield from (alias.name for alias in node.names if not alias.name.isupper() and alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"{path}: a relative import hides which box it is")
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("toolkit."))


def box_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules_above(path: Path) -> Iterator[str]:
    """The modules that a file imports outside its functions, for types alone too."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit."):
            for alias in node.names:
                inner = PACKAGE.parent / str(node.module).replace(".", "/") / alias.name
                whole = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if whole else str(node.module)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += ast.iter_child_nodes(node)


@functools.cache
def arrows() -> set[tuple[str, str]]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path != PACKAGE / "__init__.py":
            found |= {(box_of(path), used) for used in imports(path) if used != box_of(path)}
    return found


def test_a_box_imports_only_from_the_floors_below() -> None:
    level = {box: number for number, floor in enumerate(FLOORS) for box in floor}
    wrong = [f"{box} imports {used}" for box, used in sorted(arrows()) if level[box] <= level[used]]
    assert not wrong, wrong


def test_every_box_stands_on_a_floor() -> None:
    there = {box_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert there == set.union(*FLOORS)


def test_the_house_stays_small() -> None:
    """Before the redesign: 35 boxes, 10 floors, 183 arrows."""
    boxes = set.union(*FLOORS)
    assert len(boxes) <= 20 and len(FLOORS) <= 7 and len(arrows()) <= 76


def test_no_modules_import_each_other() -> None:
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    graph = {name.removesuffix(".__init__"): [*modules_above(path)] for name, path in files.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle
