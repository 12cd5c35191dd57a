"""What is printed where: data on stdout, the rest on stderr, one JSON object on failure too."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from toolkit.core import console, streams
from toolkit.core.errors import ToolkitError


@pytest.fixture(autouse=True)
def reset() -> None:
    console.configure()


def test_people_get_results_on_stdout_and_the_rest_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.info("working")
    console.warn("odd")
    console.result({"a": 1}, "the result")
    console.next_step("toolkit train")
    out, err = capsys.readouterr()
    assert out == "the result\n"
    assert err == "working\nwarning: odd\nnext: toolkit train\n"


def test_scripts_get_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(as_json=True)
    console.info("working")
    console.stream("piece")
    console.result({"answer": "é"}, "text")
    out, _ = capsys.readouterr()
    assert json.loads(out) == {"ok": True, "answer": "é"}
    console.error(ToolkitError("broken", hint="mend it", exit_code=3, details={"checks": []}))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False, "error": "broken", "hint": "mend it", "exit_code": 3, "checks": []}
    assert err == "error: broken\n\nhint: mend it\n"


def test_quiet_keeps_warnings_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True)
    console.info("working")
    console.done("done")
    console.next_step("x")
    console.warn("odd")
    assert capsys.readouterr().err == "warning: odd\n"


def test_the_log_keeps_what_was_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console.log_to(tmp_path / "log.txt")
    console.info("one\ntwo")
    console.log_to(None)
    console.info("three")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["one", "two"]


def test_progress_without_a_terminal_prints_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    with console.progress("training", 4, "steps") as progress:
        progress.advance(note="loss 2.0")
        progress.advance(2)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "training: 1/4 steps  loss 2.0"
    assert second.startswith("training: 3/4 steps  loss 2.0  ") and second.endswith(" left")


def test_neither_loading_nor_a_resumed_count_is_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = console.Progress("training", 10, "steps")
    progress.skip_to(6)
    assert progress.seconds_left() is None
    now += 30  # a model is loaded
    progress.advance()
    assert progress.seconds_left() is None
    now += 2
    progress.advance()
    assert progress.seconds_left() == 4  # two steps of two seconds remain
    progress.skip(1)
    assert progress.seconds_left() == 2 and progress.line() == "training: 9/10 steps  2.0 s left"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4.9e9, "4.9 GB"), (2e12, "2.00 TB")]
)
def test_sizes(count: float, text: str) -> None:
    assert console.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.21, "4.2 s"), (42, "42 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.9, "60 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_tables_read_without_colour() -> None:
    text = console.table(("name", "size"), [("F16", "270.0 MB"), ("Q8_0", "1.0 MB")])
    assert "\x1b" not in text
    assert [line.split() for line in text.splitlines() if "F16" in line] == [["F16", "270.0", "MB"]]


def test_control_characters_of_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An escape sequence in a row that is shown would move the cursor, or change the window's title."""
    streams.state().log = tmp_path / "log.txt"
    try:
        console.warn("first row 1 `\x1b]0;title\x07 \x9b2J\r \x7f a\tb`\nsecond line é 中文")
    finally:
        streams.state().log = None
    expected = "first row 1 `\\x1b]0;title\\x07 \\x9b2J\\x0d \\x7f a\tb`\nsecond line é 中文"
    assert expected in capsys.readouterr().err
    logged = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition("  ")[2].removeprefix("warning: ") for line in logged] == expected.splitlines()


def test_progress_in_bytes_shows_speed_and_time_left() -> None:
    progress = console.Progress("export", 8_000_000, "B")
    progress.started -= 2.0
    progress.advance(2_000_000, "tensor 1 of 3  output.weight")
    line = progress.line()
    assert line.startswith("export: 2.0 MB of 8.0 MB  tensor 1 of 3  output.weight  ")
    speed, left = line.split("  ")[-2:]
    assert speed.endswith(" kB/s") and 900 < float(speed.split()[0]) <= 1000
    assert left.endswith(" s left") and 6 <= float(left.split()[0]) < 7


WITHOUT_RICH = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError("No module named 'rich'", name="rich")
sys.meta_path.insert(0, Missing())
"""
CALL = "from toolkit.cli.main import main; main()"
OUTPUTS = """
from toolkit.core import console
console.PLAIN_INTERVAL = 0
console.info("working")
console.done("done")
console.warn("odd")
console.next_step("toolkit train")
with console.progress("training", 4, "steps") as progress:
    progress.advance()
table = console.table(("name", "size"), [("F16", "270.0 MB"), ("a longer name", "1.0 MB")], title="files")
console.result({}, table)
"""


def without_rich(code: str, folder: Path, *arguments: str, stderr: int = subprocess.PIPE) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RICH + code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr or ""


@pytest.mark.slow
def test_without_rich_an_error_is_plain_text(tmp_path: Path) -> None:
    code, out, err = without_rich(CALL, tmp_path, "train")
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and "toolkit.toml" in err and "\nhint: " in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_without_rich_the_missing_library_is_named(tmp_path: Path) -> None:
    broken = "from toolkit.core import config_file\ndef load(*_): import rich\nconfig_file.load_config = load\n"
    code, _, err = without_rich(broken + CALL, tmp_path, "train")
    assert code == 3
    assert err.startswith("error: a library is missing or broken: No module named 'rich'\n\nhint: ")


def test_without_rich_the_help_is_shown(tmp_path: Path) -> None:
    code, out, err = without_rich(CALL, tmp_path, "--help")
    assert (code, err) == (0, "") and "Commands:" in out


def test_without_rich_every_output_is_plain_text(tmp_path: Path) -> None:
    code, out, err = without_rich(OUTPUTS, tmp_path)
    assert code == 0, err
    assert out.splitlines() == [
        "files",
        "name               size",
        "-------------  --------",
        "F16            270.0 MB",
        "a longer name    1.0 MB",
    ]
    lines = err.splitlines()
    assert (
        lines[0] == "working" and lines[1].endswith(" done") and lines[2:4] == ["warning: odd", "next: toolkit train"]
    )
    assert lines[4].startswith("training: 1/4 steps") and len(lines) == 5


def test_without_rich_progress_on_a_terminal_is_plain_lines(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    code, _, _ = without_rich(OUTPUTS, tmp_path, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert code == 0 and "training: 1/4 steps" in shown


GONE = """
import sys
from toolkit.core import console
sys.stdin.readline()  # until whoever read has gone
for word in ("warning", "done", "info"):
    {"warning": console.warn, "done": console.done, "info": console.info}[word](word)
with console.progress("work", 2, "steps") as progress:
    progress.advance()
print("went on", flush=True)
"""


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_work_goes_on_where_nobody_reads_what_is_said(kind: str) -> None:
    """`2>&1 | tee log`, and Ctrl-C ends tee too; or the terminal's window is closed."""
    ours, theirs = pty.openpty() if kind == "terminal" else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", GONE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm"},
    )
    os.close(theirs)
    os.close(ours)
    out, _ = process.communicate(b"\n", timeout=60)
    assert (process.returncode, out) == (0, b"went on\n")


def test_a_hang_up_leaves_files_and_pipes_alone(tmp_path: Path) -> None:
    code = "from toolkit.core import console, streams; streams.hang_up(); print('kept'); console.info('said')"
    with (tmp_path / "said").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
    assert (done.returncode, done.stdout, (tmp_path / "said").read_text()) == (0, b"kept\n", "said\n")
