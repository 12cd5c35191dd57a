"""Pass the training process's messages to the Python program that started it; on a terminal it prints itself.

Its lines come through a named pipe, which also reaches it through accelerate's launcher. What libraries print goes into
a file, whose end is shown if the process dies.
"""

import contextlib
import json
import os
import select
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.core import streams

SHOWN = 1000  # characters of what a dead process printed last
POLL = 0.2  # seconds until the process is asked whether it has ended


@dataclass
class Lines:
    """Where a training process writes: `name` of its pipe, empty where it prints itself, `output` for the rest."""

    name: str = ""
    output: int = 2
    pipe: int = -1
    printed: Path | None = None
    rest: bytes = field(default=b"", repr=False)

    def wait(self, process: "subprocess.Popen[bytes]") -> int:
        """Show the lines as they come until the process ends, and return its exit code."""
        if not self.name:
            return process.wait()
        while process.poll() is None:
            self._forward(POLL)
        self._forward(0)
        return int(process.returncode)

    def _forward(self, seconds: float) -> None:
        while select.select([self.pipe], [], [], seconds)[0]:
            seconds = 0
            *whole, self.rest = (self.rest + os.read(self.pipe, 1 << 16)).split(b"\n")
            for line in whole:
                streams.show(json.loads(line))  # the process has written it into the log

    def last(self) -> str:
        """Say what the process printed last, or where that stands."""
        if self.printed is None:
            return "the lines above say why"
        text = self.printed.read_text(encoding="utf-8", errors="replace").strip()
        return f"it printed last:\n{text[-SHOWN:]}\n" if text else "it printed nothing"


@contextlib.contextmanager
def lines_of_worker(folder: Path) -> Iterator[Lines]:
    """Make what a training process writes into, in a folder of its own; nothing where this process has a terminal."""
    if streams.state().sink is None:
        yield Lines()
        return
    pipe, printed = folder / "lines", folder / "printed"
    os.mkfifo(pipe)
    with contextlib.ExitStack() as stack:
        reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # open for writing too: it has no end
        stack.callback(os.close, reader)
        output = stack.enter_context(printed.open("wb"))
        yield Lines(str(pipe), output.fileno(), reader, printed)


@contextlib.contextmanager
def sent_to(name: str) -> Iterator[None]:
    """Send what this process says through the pipe of that name during the block; without a name, print it."""
    if not name:
        yield
        return
    with Path(name).open("w", encoding="ascii") as pipe:

        def send(text: str) -> None:
            with contextlib.suppress(OSError):  # the reader is gone
                pipe.write(json.dumps(text) + "\n")
                pipe.flush()

        with streams.directed(send):
            yield
