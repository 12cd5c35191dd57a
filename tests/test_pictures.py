"""The pictures of README and docs/: a cast is what a run printed, and charts are files of their own."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools import pictures

LOG = [
    "2026-11-27 10:00:00  prepare (first time)",
    "2026-11-27 10:00:00  an older run, which broke off",
    "2026-11-27 11:00:00  prepare (first time)",
    "2026-11-27 11:00:02  60 rows: 59 kept <47 train & 12 others>",
    "of which this is the second line",
    "2026-11-27 11:00:10  training: 1/40 steps  loss 2.6",
    "2026-11-27 11:10:10  training: 39/40 steps  loss 2.2",
    "2026-11-27 11:10:11  ✓ done " + "x" * 150,
    *(f"2026-11-27 11:10:12  line {number}" for number in range(40)),
    '2026-11-27 11:12:00  next: toolkit ask "…"',
    "2026-11-27 12:00:00  not of this run",
]
NAMES = {"s": "{http://www.w3.org/2000/svg}"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "log.txt").write_text("\n".join(LOG) + "\n")
    return tmp_path


def test_the_log_of_the_last_whole_run_is_read(run: Path) -> None:
    log = pictures.read_log(run / "log.txt")
    assert log[0] == (0.0, "prepare (first time)") and log[2] == (2.0, "of which this is the second line")
    assert log[-1] == (720.0, 'next: toolkit ask "…"')


@pytest.mark.parametrize("lines", [LOG[3:5], LOG[2:6], []])
def test_a_log_without_a_whole_run_is_refused(tmp_path: Path, lines: list[str]) -> None:
    (tmp_path / "log.txt").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="holds no run"):
        pictures.read_log(tmp_path / "log.txt")


def test_every_line_is_shown_in_its_order_and_progress_takes_one_row(run: Path) -> None:
    lines = pictures.arranged(pictures.read_log(run / "log.txt"), "toolkit run")
    texts = [line.text for line in lines]
    assert texts[0] == "$ toolkit run" and "60 rows: 59 kept <47 train & 12 others>" in texts
    first, second = (line for line in lines if line.text.startswith("training"))
    assert first.row == second.row and first.end == second.start
    assert [line.start for line in lines] == sorted(line.start for line in lines)
    assert lines[-1].start <= pictures.SECONDS - pictures.HOLD and max(map(len, texts)) <= pictures.COLUMNS
    rows = [line.row for line in lines]
    assert rows == sorted(rows) and set(rows) == set(range(rows[-1] + 1))


def test_the_cast_is_whole_and_says_how_long_the_run_took(run: Path) -> None:
    text = pictures.cast_picture(run)
    svg = ElementTree.fromstring(text)
    shown = [one.text for one in svg.iter(NAMES["s"] + "text")]
    assert "12 minutes, shown in 15 seconds" in str(svg.findtext(NAMES["s"] + "title"))
    assert "60 rows: 59 kept <47 train & 12 others>" in shown and 'next: toolkit ask "…"' in shown
    assert "prefers-reduced-motion" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_a_chart_needs_no_style_sheet(tmp_path: Path) -> None:
    entries = [{"step": step, "loss": 3 - step / 20} for step in range(1, 21)] + [{"step": 20, "eval_loss": 2.2}]
    (tmp_path / "train_log.jsonl").write_text("\n".join(map(json.dumps, entries)))
    text = pictures.loss_picture(tmp_path)
    assert ElementTree.fromstring(text).tag == NAMES["s"] + "svg"
    assert "var(" not in text and ".chart .curve.one" in text
