"""Ctrl-C, SIGTERM and a hang-up end a process alike: what is unfinished is undone. Each test has a real process."""

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

START = """
import ctypes, os, sys, time
from pathlib import Path
from toolkit.core import signals
from toolkit.core.files import writing, writing_folder

def wait():
    print("ready", flush=True)
    time.sleep(30)

def sent(number):
    os.kill(os.getpid(), number)

try:
    with signals.ending_cleanly():
"""
END = """
except KeyboardInterrupt:
    print("ended", flush=True)
    sys.exit(130)
"""
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def running(folder: Path, body: str, *before: str) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that does `body` while signals end it cleanly."""
    code = START + textwrap.indent(textwrap.dedent(body), " " * 8) + END
    with subprocess.Popen(
        [*before, sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(REPOSITORY)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        yield process


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("writer", ['writing(Path("made"))', 'writing_folder(Path("made"))'])
def test_a_file_that_is_not_whole_is_removed(tmp_path: Path, writer: str, number: int) -> None:
    (tmp_path / "made").mkdir() if "folder" in writer else (tmp_path / "made").write_text("former")
    with running(tmp_path, f"with {writer}:\n    wait()") as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        assert len([*tmp_path.iterdir()]) == 2
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "ended\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_under_nohup_a_hang_up_ends_nothing(tmp_path: Path) -> None:
    body = "print('ready', flush=True)\nsys.stdin.read()\nsent(1)\nprint('goes on')"
    with running(tmp_path, body, "nohup") as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ready\ngoes on\n")


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_signals_that_come_in_pairs_are_one_request(tmp_path: Path, second: int) -> None:
    """GNU `timeout` and a shell whose terminal is closed both send two: the second must not end the cleaning up."""
    body = f"""
    try:
        sent({second.real})
    finally:
        sent({second.real})
        print("cleaned", flush=True)
    """
    with running(tmp_path, body) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "cleaned\nended\n", "")


def test_a_later_request_ends_the_cleaning_up(tmp_path: Path) -> None:
    body = """
    try:
        sent(15)
    finally:
        signals.SAME = 0.0
        sent(1)
        print("still", flush=True)
        sent(2)
        print("never", flush=True)
    """
    with running(tmp_path, body) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "still\nended\n")


@pytest.mark.slow
@pytest.mark.parametrize("number", ALL)
def test_a_request_inside_a_librarys_callback_comes_again(tmp_path: Path, number: int) -> None:
    """Python prints an exception in a callback from C, and goes on."""
    body = f"""
    ctypes.CFUNCTYPE(None)(lambda: sent({number.real}))()
    print("swallowed", flush=True)
    wait()
    """
    with running(tmp_path, body) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out.startswith("swallowed\n") and out.endswith("ended\n")
    assert "Exception ignored" not in err


def test_other_exceptions_in_callbacks_are_still_printed(tmp_path: Path) -> None:
    with running(tmp_path, "ctypes.CFUNCTYPE(None)(lambda: 1 / 0)()") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "ZeroDivisionError" in err


@pytest.mark.parametrize("number", ALL)
def test_a_block_that_must_finish_is_finished_first(tmp_path: Path, number: int) -> None:
    body = f"""
    with signals.uninterrupted("undoing"):
        for _ in range(3):
            sent({number.real})
        print("finished", flush=True)
    print("never", flush=True)
    """
    with running(tmp_path, body) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "finished\nended\n")
    assert err.count("undoing; Ctrl-C once more stops at once") == (number == signal.SIGINT)


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_block_that_hangs(tmp_path: Path) -> None:
    with running(tmp_path, 'with signals.uninterrupted("undoing"):\n    wait()') as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.stderr and "undoing" in process.stderr.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert process.returncode == 130


def test_an_error_of_the_block_comes_through(tmp_path: Path) -> None:
    body = """
    try:
        with signals.uninterrupted("undoing"):
            sent(15)
            raise ValueError("full")
    except ValueError as exc:
        print(exc, flush=True)
    """
    with running(tmp_path, body) as process:
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "full\n")


def test_handlers_are_given_back() -> None:
    from toolkit.core import signals

    before = [signal.getsignal(number) for number in ALL], sys.unraisablehook
    with signals.ending_cleanly(), signals.uninterrupted("x"):
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert ([signal.getsignal(number) for number in ALL], sys.unraisablehook) == before
