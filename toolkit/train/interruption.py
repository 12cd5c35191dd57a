"""An orderly end on Ctrl-C: after the step in hand, with a checkpoint; a second one ends at once."""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from toolkit import console


@dataclass
class Interruption:
    """Whether the user asked to stop."""

    requested: bool = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Take over SIGINT and SIGTERM while the block runs."""

        def stop(number: int, frame: object) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            console.say("stopping after this step, to save a checkpoint; once more stops at once")

        former = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
