"""Ctrl-C, SIGTERM and a closed terminal: all end the process in the same way, and undo what is unfinished.

Each raises KeyboardInterrupt in the main thread: files that are not whole are removed, a registration is rolled back.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.core import console, streams

SAME = 1.0  # seconds: `timeout` sends its signal twice, and so does a terminal that is closed
SWALLOWED = 0.05  # seconds until a request that a library's callback swallowed is repeated


@dataclass
class Request:
    """Tells a second request to end from the first one, which may come as several signals."""

    since: float | None = None

    def count(self, number: int) -> int:
        """Count a signal: 1 for the first request, 2 for a further one, 0 for a signal that belongs to the first.

        A hang-up is never a further request: a person does not ask by it.
        """
        if self.since is None:
            self.since = time.monotonic()
            return 1
        return 0 if number == signal.SIGHUP or time.monotonic() - self.since < SAME else 2


def stopping_signals() -> list[int]:
    """Return the signals that end a verb; without a hang-up that is ignored, as under nohup."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


@contextlib.contextmanager
def handled(handler: Any) -> Iterator[None]:
    """Give the stopping signals to a handler during the block; in another thread than the main one, do nothing."""
    former: dict[int, Any] = {}
    try:
        with contextlib.suppress(ValueError):
            for number in stopping_signals():
                former[number] = signal.signal(number, handler)
        yield
    finally:
        for number, usual in former.items():
            signal.signal(number, signal.SIG_DFL if usual is None else usual)


@contextlib.contextmanager
def ending_cleanly() -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when a stopping signal comes; a second request raises it again."""
    request, numbers = Request(), [signal.SIGINT.value]

    def end(number: int, frame: object) -> None:
        if number == signal.SIGHUP:
            streams.hang_up()
        if request.count(number):
            numbers[:] = [number]
            raise KeyboardInterrupt

    def repeat() -> None:
        request.since = None
        os.kill(os.getpid(), numbers[0])

    def unraisable(found: Any) -> None:
        """Ask again where a callback in C ended by the request: Python only prints it there."""
        if isinstance(found.exc_value, KeyboardInterrupt):
            timer = threading.Timer(SWALLOWED, repeat)
            timer.daemon = True
            timer.start()
        else:
            usual(found)

    usual = sys.unraisablehook
    sys.unraisablehook = unraisable
    try:
        with handled(end):
            yield
    finally:
        sys.unraisablehook = usual


@contextlib.contextmanager
def uninterrupted(doing: str) -> Iterator[None]:
    """Finish the block although a stopping signal comes, and raise KeyboardInterrupt after it.

    Ctrl-C in the block says what is being done (`doing`); a second one ends it.
    """
    request, held = Request(), 0

    def hold(number: int, frame: object) -> None:
        nonlocal held
        held += 1
        if number == signal.SIGHUP:
            streams.hang_up()
        if number == signal.SIGINT:
            count = request.count(number)
            if count == 2:
                raise KeyboardInterrupt
            if count:
                console.info(f"{doing}; Ctrl-C once more stops at once")

    with handled(hold):
        yield
    if held:
        raise KeyboardInterrupt
