"""Work that several processes share."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from tests.support.waiting import has_ended, wait_for
from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.pool import shared

pytestmark = pytest.mark.slow  # a process begins in a second

# No `if __name__ == "__main__"`: a user's script has none either.
PROGRAM = """
from toolkit.core import hardware
from toolkit.core.pool import shared
hardware.cores = lambda: 2
import the_work
for one in shared(the_work.work, range(10_000), 9):
    pass
"""
WORK = """
import os, time
def work(piece):
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(0.2)
    return piece
"""


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test process may have one core, and with one core nothing is shared."""
    monkeypatch.setattr(hardware, "cores", lambda: 2)


def doubled(piece: int) -> tuple[int, int]:
    if piece == 99:
        raise ToolkitError("a piece that cannot be done", hint="leave it out")
    return 2 * piece, os.getpid()


def test_results_come_in_the_order_of_the_pieces() -> None:
    found = [*shared(doubled, range(40), 9)]
    assert [twice for twice, _ in found] == [2 * piece for piece in range(40)]
    assert os.getpid() not in {process for _, process in found}


def test_an_error_comes_back_as_it_is() -> None:
    with pytest.raises(ToolkitError, match="a piece that cannot be done") as caught:
        [*shared(doubled, range(90, 120), 9)]
    assert caught.value.hint == "leave it out"


def killed(piece: int) -> int:
    if piece == 7:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory is short
    return piece


def test_a_process_that_is_killed_is_an_error_that_says_so() -> None:
    with pytest.raises(ToolkitError, match="was ended from outside, perhaps for lack of memory") as caught:
        [*shared(killed, range(40), 9)]
    assert "run the same command again" in caught.value.hint


def endless(piece: int) -> int:
    while piece:
        time.sleep(1)
    return os.getpid()


def test_what_is_begun_is_not_waited_for_where_no_more_is_wanted() -> None:
    results = shared(endless, range(40), 9)
    first = next(results)
    assert first != os.getpid()
    results.close()  # as an error or Ctrl-C of the caller does


def test_one_core_needs_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    assert {process for _, process in shared(doubled, range(10), 9)} == {os.getpid()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_others_end_with_the_first(tmp_path: Path, number: int) -> None:
    program = tmp_path / "script.py"
    program.write_text(PROGRAM)
    (tmp_path / "the_work.py").write_text(WORK)
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        others = {int(process.stdout.readline()) for _ in range(4)}
        assert process.pid not in others
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal sends Ctrl-C, to all of them
        else:
            process.kill()
        process.wait()
        for one in others:
            wait_for(functools.partial(has_ended, one))
        assert process.stderr.read().count("Traceback") <= 1  # the first one's own
