"""A stage that dies at any of its writes is done again by the same command, with the same files."""

import csv
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.faulty import faults_of

pytestmark = pytest.mark.slow

SETTINGS = """
[run]
name = "r"
folder = "runs"
[data]
source = "rows.csv"
[model]
base = "base"
[train]
max_length = 400
max_steps = 2
warmup_steps = 0
batch_size = 1
gradient_accumulation_steps = 1
[export]
quantizations = ["F16", "Q8_0"]
default = "F16"
[validate]
rows = 2
answer_tokens = 2
questions = ["What helps?"]
[evaluate]
questions = 2
answer_tokens = 3
"""


def went_well(ended: list[dict[str, Any]]) -> None:
    """Check how each fault went: one line, no traceback, nothing lost or left, the same command goes on."""
    assert ended
    for one in ended:
        shown = {key: one[key] for key in ("number", "kill", "first", "said", "stated", "said_again", "differing")}
        assert one["status"] == 0, shown
        assert one["again"] == 0, shown
        assert not one["differing"], shown
        for said in (one["said"], one["stated"], one["said_again"]):
            assert "Traceback" not in said and "bug in the toolkit" not in said, shown
        if one["first"] not in (0, -9) and "was killed by signal 9" not in one["said"]:
            assert one["first"] == 1 and "the disk is full: " in one["said"], shown
            named = one["said"].partition("the disk is full: ")[2].splitlines()[0]
            assert "does not name" not in named and ".part" not in named, shown


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A project folder: settings, rows, a base model."""
    folder = tmp_path / "project"
    models.save_model(folder / "base")
    (folder / "toolkit.toml").write_text(SETTINGS)
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([f"What helps against {word}?", f"Rest helps against {word}."] for word in WORDS)
    return folder


WORDS = [f"{first}{second}" for first in ("fever", "pain", "cough", "cold", "gout") for second in "abcdefgh"]


def prepared(place: Path) -> Path:
    """Prepare, and change the rows, so that the next call replaces what is there."""
    from tests.conftest import call_toolkit

    assert call_toolkit("prepare", cwd=place).code == 0
    rows = (place / "rows.csv").read_text().splitlines()
    (place / "rows.csv").write_text("\n".join(rows[:-3]) + "\n")
    return place


# Every write takes ten minutes on two cores, every eighth some seconds.
WHICH = ["11:40", "3:8", pytest.param("all", marks=pytest.mark.exhaustive)]


def first_of(*which: str) -> list[Any]:
    """Return cases that take a minute each: the others are tried in make exhaustive."""
    return [which[0], *(pytest.param(each, marks=pytest.mark.exhaustive) for each in which[1:])]


@pytest.mark.parametrize("which", WHICH)
def test_the_first_prepare(place: Path, which: str) -> None:
    went_well(faults_of(place, which, "prepare"))


@pytest.mark.parametrize("which", WHICH)
def test_a_prepare_that_replaces_another(place: Path, which: str) -> None:
    went_well(faults_of(prepared(place), which, "prepare"))


@pytest.mark.parametrize("which", WHICH)
def test_an_export_of_two_files(place: Path, which: str) -> None:
    models.save_adapter(place / "runs" / "r" / "adapter", place / "base")
    went_well(faults_of(place, which, "export"))


@pytest.mark.parametrize("which", first_of("1:18", "10:18", "6:9"))
def test_a_validation(place: Path, which: str) -> None:
    from tests.conftest import call_toolkit

    models.save_adapter(place / "runs" / "r" / "adapter", place / "base")
    for stage in ("prepare", "export"):
        assert call_toolkit(stage, cwd=place).code == 0
    went_well(faults_of(place, which, "validate"))


@pytest.mark.parametrize("which", first_of("2:34", "19:34", "5:7"))
def test_an_evaluation(place: Path, which: str) -> None:
    from tests.conftest import call_toolkit

    models.save_adapter(place / "runs" / "r" / "adapter", place / "base")
    for stage in ("prepare", "export"):
        assert call_toolkit(stage, cwd=place).code == 0
    went_well(faults_of(place, which, "evaluate"))


@pytest.mark.parametrize("which", first_of("7:82", "48:82", "23:41"))
def test_a_training(place: Path, which: str) -> None:
    from tests.conftest import call_toolkit

    assert call_toolkit("prepare", cwd=place).code == 0
    went_well(faults_of(place, which, "train"))
