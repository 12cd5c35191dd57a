"""Wait for what other processes and threads do; a test fails where it never happens."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

SECONDS = 60.0


def wait_for(happened: Callable[[], object], seconds: float = SECONDS) -> None:
    """Wait until a function returns something true; raises AssertionError after so many seconds."""
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, f"it did not happen within {seconds:g} s"
        time.sleep(0.01)


class Running(Protocol):
    """A process that was started."""

    stderr: Any

    def poll(self) -> int | None: ...


def wait_while_running(process: Running, happened: Callable[[], object], seconds: float = 5 * SECONDS) -> None:
    """Wait as `wait_for` does for what a process does; fails, with its stderr, where it ends before."""

    def looked() -> object:
        ended = process.poll() is not None  # asked first: what it did last counts
        if not (found := happened()):
            assert not ended, f"the process ended before: {process.stderr.read() if process.stderr else ''}"
        return found

    wait_for(looked, seconds)


def has_ended(pid: int) -> bool:
    """Say whether a process is gone, or ended and not yet asked for its exit code."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):  # it may end while it is read
        return True
    return "State:\tZ" in status
