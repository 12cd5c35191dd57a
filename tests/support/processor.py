"""A limit on what a test may take of a processor."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def processor_seconds(most: float) -> Iterator[None]:
    """Raise TimeoutError where the block takes more; a pattern that hangs is ended too."""

    def end(*_: object) -> None:
        raise TimeoutError(f"more than {most} seconds of a processor")

    former = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, most)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)
