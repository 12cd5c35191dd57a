"""What pyproject.toml declares is what the package imports."""

import ast
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.places import REPOSITORY
from toolkit import DISTRIBUTION
from toolkit.core import hardware

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
OTHER_NAMES = {"llama_cpp": "llama-cpp-python", "sklearn": "scikit-learn"}


def declared(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def imported(folder: Path) -> set[str]:
    """The distributions of all modules that are imported below a folder, at module level or in a function."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(str(node.module))
    names = {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names) - {"toolkit"}
    return {canonicalize_name(OTHER_NAMES.get(name, name)) for name in names}


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    found = imported(REPOSITORY / "toolkit")
    dependencies = declared(PROJECT["dependencies"])
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs")]
    assert found - dependencies == set.union(*map(declared, extras))
    assert dependencies <= found


def test_an_import_in_a_function_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("import os\ndef f():\n    import sklearn.svm\n    from yaml import load\n")
    assert imported(tmp_path) == {"scikit-learn", "yaml"}


def test_the_doctor_knows_the_distribution_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package on the index is called `toolkit`: its requirements are not ours."""
    assert PROJECT["name"] == DISTRIBUTION
    installed = {DISTRIBUTION: ["ours>=1", "extra>=1; extra == 'dev'"], "toolkit": ["theirs>=1"]}
    monkeypatch.setattr(metadata, "requires", installed.__getitem__)
    assert hardware.requirements() == ["ours>=1"]


def test_a_checkout_that_is_not_installed_is_read_from_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    assert hardware.requirements() == PROJECT["dependencies"]
