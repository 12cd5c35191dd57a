"""How many rows are scored by `validate.rows = "auto"`, by a clock that the test sets."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import scored_models
from tests.validate.conftest import Trained
from toolkit.core.errors import ToolkitError
from toolkit.validate import pace, validate
from toolkit.validate.layers import open_trained
from toolkit.validate.report import report_table
from toolkit.validate.spill import RESERVE


def ticking(seconds: float) -> Callable[[], float]:
    """Return a clock on which that much time goes by between two looks."""
    looks = iter(range(1_000_000))
    return lambda: next(looks) * seconds


@pytest.mark.parametrize(
    ("there", "seconds", "size", "room", "count"),
    [
        (500, 1.0, 1.0, 1e12, 300),  # five minutes
        (200, 1.0, 1.0, 1e12, 200),  # no more than there are
        (500, 60.0, 1.0, 1e12, 10),  # too slow for ten: ten
        (500, 1.0, 1e9, 5e10, 50),  # the disk has room for 50
        (500, 1.0, 1e9, 0.0, 10),
        (7, 60.0, 1.0, 1e12, 7),
        (500, 0.0, 0.0, 0.0, 10),
    ],
)
def test_rows_fit_into_the_time_and_onto_the_disk(
    there: int, seconds: float, size: float, room: float, count: int
) -> None:
    assert pace.count_rows(there, seconds, size, room) == count


@pytest.mark.slow
def test_the_first_rows_decide(made: scored_models.World, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    layers = open_trained(made.base.folder, made.folder.adapter)
    many = [replace(record, row=number) for number, record in enumerate(trained.records * 20)]
    path = made.folder.gguf("Q8_0")
    for seconds, least, most in ((1e-9, 120, 120), (5.0, 20, 110), (100.0, 10, 10)):
        chosen = pace.choose_rows(many, layers, path, made.folder.path, ticking(seconds))
        assert least <= len(chosen) <= most
        rows = [record.row for record in chosen]
        assert rows == sorted(set(rows)) and rows[-1] > 120 - 2 * 120 / len(rows)  # spread over all
    said = " ".join(capsys.readouterr().err.split())
    assert "10 of 120 held-out rows are scored: the reference takes" in said and "(validate.rows)" in said


@pytest.mark.slow
def test_a_small_disk_limits_the_rows(
    made: scored_models.World, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = open_trained(made.base.folder, made.folder.adapter)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=RESERVE + 10_000_000))
    chosen = pace.choose_rows(trained.records * 20, layers, made.folder.gguf("Q8_0"), made.folder.path, ticking(1e-9))
    size = 2 * 4 * sum(len(record.seen) for record in chosen) * layers.skeleton.hidden_size
    assert 10 < len(chosen) < 120 and size < 2_500_000


@pytest.mark.slow
def test_few_rows_are_all_scored_and_nothing_is_timed(made: scored_models.World, tmp_path: Path) -> None:
    def never() -> float:
        raise AssertionError("asked for the time")

    run = scored_models.copy(made, tmp_path, rows="auto", questions=[])
    outcome = validate(run.config, run.folder, run.base, run.manifest(), clock=never)
    assert outcome.figures["rows_scored"] == outcome.figures["rows"] == 6


@pytest.mark.slow
def test_the_upper_end_of_few_rows_is_held_against_the_bound(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path, questions=[])
    first = validate(run.config, run.folder, run.base, run.manifest()).figures["quantizations"]["Q8_0"]
    low, mean, high = (first[name] for name in ("mean_kl_low", "mean_kl", "mean_kl_high"))
    assert low < mean < high
    between = scored_models.settings(tmp_path, questions=[], max_kl={"Q8_0": (mean + high) / 2})
    with pytest.raises(ToolkitError, match=r"up to .*, which counts with 4 rows\) is over its bound") as caught:
        validate(between, run.folder, run.base, run.manifest())
    assert f"Q8_0: mean KL {mean:.3g} (up to {high:.3g}, " in caught.value.message


@pytest.mark.slow
def test_a_single_row_has_no_interval_and_that_is_said(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path, questions=[], rows=1)
    figures = validate(run.config, run.folder, run.base, run.manifest()).figures
    entry = figures["quantizations"]["Q8_0"]
    assert entry["mean_kl_low"] is None and entry["mean_kl_high"] is None and entry["passed"]
    assert "one row has no 95 % interval: its mean alone is compared with the bound" in report_table(figures)
    entry["mean_kl"] = None  # nothing was measured
    assert "interval" not in report_table({**figures, "quantizations": {"Q8_0": entry}})


@pytest.mark.slow
def test_a_second_run_has_the_same_interval_to_the_last_bit(made: scored_models.World, tmp_path: Path) -> None:
    run = scored_models.copy(made, tmp_path, questions=[])
    found = [validate(run.config, run.folder, run.base, run.manifest()).figures["quantizations"] for _ in range(2)]
    assert found[0] == found[1]
