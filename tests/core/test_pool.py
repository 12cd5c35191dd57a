"""Work that several processes share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from toolkit.core.errors import ToolkitError
from toolkit.core.pool import shared

pytestmark = pytest.mark.slow  # a process begins in a second

PROGRAM = """
import os, sys, time
from toolkit.core.pool import shared
def work(piece):
    print(os.getpid(), flush=True)
    time.sleep(0.2)
    return piece
if __name__ == "__main__":
    for one in shared(work, range(10_000)):
        pass
"""


def doubled(piece: int) -> tuple[int, int]:
    if piece == 99:
        raise ToolkitError("a piece that cannot be done", hint="leave it out")
    return 2 * piece, os.getpid()


def test_results_come_in_the_order_of_the_pieces() -> None:
    found = [*shared(doubled, range(40))]
    assert [twice for twice, _ in found] == [2 * piece for piece in range(40)]
    assert os.getpid() not in {process for _, process in found}


def test_an_error_comes_back_as_it_is() -> None:
    with pytest.raises(ToolkitError, match="a piece that cannot be done") as caught:
        [*shared(doubled, range(90, 120))]
    assert caught.value.hint == "leave it out"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_others_end_with_the_first(tmp_path: Path, number: int) -> None:
    program = tmp_path / "work.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout and process.stderr
        others = {int(process.stdout.readline()) for _ in range(4)}
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal sends Ctrl-C, to all of them
        else:
            process.kill()
        process.wait()
        for one in others:
            while Path(f"/proc/{one}").exists() and "zombie" not in Path(f"/proc/{one}/status").read_text():
                time.sleep(0.1)  # the test's own limit of time ends it
        assert process.stderr.read().count("Traceback") <= 1  # the first one's own
