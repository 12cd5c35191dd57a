"""Names that can be found: no public function or class has the name of two others in the package."""

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
