"""The table of families: each architecture has one row, and in it the small models that prove it."""

import re

from tests.support import families
from tests.support.places import REPOSITORY
from toolkit.model.families import FAMILIES
from toolkit.model.kinds import KINDS

SECTION = (REPOSITORY / "docs/reference/families.md").read_text(encoding="utf-8").split("\n## ", 1)[0]
ROWS = [[re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:-1]] for line in SECTION.splitlines()
        if line.startswith("|")][2:]  # fmt: skip


def test_every_architecture_has_one_row_with_its_name_in_gguf() -> None:
    shown = [(name, row[2]) for row in ROWS for name in row[1]]
    assert sorted(shown) == sorted((name, [family.architecture]) for name, family in FAMILIES.items())


def test_every_small_model_is_in_the_row_of_its_architecture() -> None:
    shown = [(model, row[1]) for row in ROWS for model in row[4]]
    assert sorted(model for model, _ in shown) == sorted([*families.FAMILIES, *families.VARIANTS])
    assert [model for model, names in shown if families.architecture_of(model) not in names] == []


def test_every_architecture_has_a_small_model() -> None:
    made = {families.architecture_of(name) for name in (*families.FAMILIES, *families.VARIANTS)}
    assert made == set(FAMILIES)


def test_every_architecture_has_a_kind_by_which_its_sizes_are_read() -> None:
    kinds = {kind.name: kind.architecture for kind in KINDS.values()}
    assert {name: kinds.get(name) for name in FAMILIES} == {
        name: found.architecture for name, found in FAMILIES.items()
    }


def test_a_gguf_file_of_every_architecture_is_a_base() -> None:
    read = {family.architecture for family in FAMILIES.values() if family.stated}
    assert read == {family.architecture for family in FAMILIES.values()}


def test_the_named_tests_run_on_every_small_model() -> None:
    every, plain = SECTION[SECTION.rindex("|") :].split("The plain ones also")
    for said, tables in ((every, ("FAMILIES", "VARIANTS")), (plain, ("FAMILIES",))):
        for name in re.findall(r"test_\w+\.py", said):
            code = (REPOSITORY / "tests/export" / name).read_text(encoding="utf-8")
            assert [table for table in tables if f"families.{table}" not in code] == [], name
