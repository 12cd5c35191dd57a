"""The process that has a GGUF open where llama.cpp computes on a GPU; torch cannot be imported in it.

`remote.py` starts it, and asks it through its stdin and stdout.
"""

import contextlib
import inspect
import os
import pickle
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import IO, Any

from toolkit.core.errors import unexpected
from toolkit.llamacpp.messages import Broken, Call, CallBack, Reply, Step, read_message, write_message


def serve() -> None:
    """Open a file as the first request says, do what the others ask, and end this process when no more can come.

    Signals that ask for an end are the asking process's, which then closes the pipe or kills this one.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asks, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    with contextlib.suppress(Broken):
        Worker(asks, replies).work()
    os._exit(0)  # the system frees the file, and the GPU's memory


@dataclass
class Worker:
    """An open file, the pipes, and the generators that have begun."""

    asks: IO[bytes]
    replies: IO[bytes]
    opened: Any = None
    generators: dict[int, Generator[Any, Any, Any]] = field(default_factory=dict)

    def work(self) -> None:
        """Reply to each request, until Broken is raised."""
        with contextlib.ExitStack() as stack:
            opener = read_message(self.asks)

            def begin() -> Reply:
                self.opened = stack.enter_context(opener.function(*opener.arguments))
                return Reply()

            self._reply(begin)
            while True:
                request = read_message(self.asks)
                self._reply(lambda: self._do(request))  # noqa: B023  # called at once

    def _reply(self, do: Callable[[], Reply]) -> None:
        try:
            found = do()
        except Broken:
            raise
        except Exception as exc:
            found = Reply(error=_sendable(exc))
        write_message(self.replies, found)

    def _do(self, request: Call | Step) -> Reply:
        if isinstance(request, Step):
            return self._step(request)
        given = [self._calling(one.number) if isinstance(one, CallBack) else one for one in request.arguments]
        found = request.function(self.opened, *given, **request.named)
        if not inspect.isgenerator(found):
            return Reply(found)
        number = max(self.generators, default=0) + 1
        self.generators[number] = found
        return Reply(generator=number)

    def _step(self, request: Step) -> Reply:
        if request.close:
            self.generators.pop(request.number).close()
            return Reply()
        try:
            return Reply(next(self.generators[request.number]))
        except StopIteration:
            return Reply(ended=True)

    def _calling(self, number: int) -> Callable[..., Any]:
        """Return what calls a function of the asking process."""

        def call(*arguments: Any) -> Any:
            write_message(self.replies, CallBack(number, arguments))
            return read_message(self.asks)

        return call


def _sendable(exc: Exception) -> Exception:
    """Return an error that the other process can read: itself, or what a user is told of it."""
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(exc))
        return exc
    return unexpected(exc)
