"""Many rows: they take little memory each, and are cleaned by several processes as by one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import outside
from tests.support.places import REPOSITORY
from toolkit.core.config_file import build
from toolkit.prepare import division
from toolkit.prepare.division import rows_of
from toolkit.prepare.read import read_table

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", [pytest.param("csv", marks=pytest.mark.exhaustive), "json"])
def test_ten_times_the_rows_take_less_than_two_and_a_half_times_the_memory(
    tmp_path: Path, medquad: Path, kind: str
) -> None:
    outside.smollm()
    command = [sys.executable, "benchmarks/prepare.py", str(medquad), "--rows", "5000", "50000", "--format", kind,
               "--set", "data.personal=off"]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    few, many = (line.replace(",", "").split() for line in done.stdout.splitlines()[1:])
    assert (int(few[0]), int(many[0])) == (5_000, 50_000)
    assert int(many[5]) < 2.5 * int(few[5]), done.stdout


def test_several_processes_find_what_one_finds(medquad: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_table(medquad, ("answer",))
    rows = [replace(row, values={**row.values, "Answer": f"{row.values['Answer']} Call 212-555-0143."})
            if row.number % 50 == 0 else replace(row, values={}, problem="odd") if row.number % 70 == 0 else row
            for row in table.rows]  # fmt: skip
    config = build({}, ["data.personal=mask"])
    alone = rows_of([replace(table, rows=rows)], config)
    monkeypatch.setattr(division, "MANY", 0)
    together = rows_of([replace(table, rows=rows)], config)
    assert [*together.records] == [*alone.records] and [*together.rejected] == [*alone.rejected]
    assert [*together.personal.findings] == [*alone.personal.findings] and len(alone.personal.findings) > 40
    assert together.personal.records == alone.personal.records == len(alone.records)
