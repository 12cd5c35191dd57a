"""kinds.md names real tests for each kind of fault."""

import fnmatch
import re

import pytest

from tests.support.places import REPOSITORY

ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in (REPOSITORY / "tests/kinds.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ \|", line)
]


def test_every_kind_has_a_row() -> None:
    assert sorted({int(row[0]) for row in ROWS}) == list(range(1, 39))
    assert all(len(row) == 3 for row in ROWS)


@pytest.mark.parametrize(("number", "tests"), [(row[0], row[-1]) for row in ROWS])
def test_the_tests_exist(number: str, tests: str) -> None:
    """Each file is there, and has the tests that are named behind it."""
    _, *parts = re.split(r"`(tests/[\w/]+\.py)`", tests)
    assert parts, f"kind {number}: no file is named"
    for name, behind in zip(parts[::2], parts[1::2], strict=True):
        names = re.findall(r"def (test_\w+)", (REPOSITORY / name).read_text(encoding="utf-8"))
        for wanted in re.findall(r"`(test_[\w*]+)`", behind):
            assert fnmatch.filter(names, wanted), f"kind {number}: {name} has no {wanted}"
