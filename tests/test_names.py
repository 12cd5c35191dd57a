"""Names that can be found: no public one stands in more than two modules, and what tests share is in no test module."""

import ast
from collections import defaultdict

from tests.support.places import REPOSITORY


def test_no_public_name_is_in_more_than_two_modules() -> None:
    """Before: `load` and `read` were in seven and six; a search for them found nothing."""
    modules = defaultdict(set)
    for path in (REPOSITORY / "toolkit").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].add(str(path.relative_to(REPOSITORY)))
    assert not {name: sorted(found) for name, found in modules.items() if len(found) > 2}


def test_nothing_in_tests_imports_a_test_module() -> None:
    """What two of them need stands in tests/support/: a test module can be changed or removed for itself."""
    found = []
    for path in (REPOSITORY / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = ".".join(filter(None, ["tests" if node.level else "", node.module]))
                names = [f"{module}.{alias.name}" for alias in node.names]
            for name in names:
                first, *parts = name.split(".")
                if first == "tests" and any(part.startswith("test_") for part in parts):
                    found.append(f"{path.relative_to(REPOSITORY)}: {name}")
    assert not found
