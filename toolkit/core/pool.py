"""Work that several processes share, with results in order. The processes end when this one ends."""

import contextlib
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import ModuleType
from typing import TypeVar

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError

AHEAD = 2  # pieces for each process that are begun before the first of them is asked for

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def shared(work: Callable[[Piece], Result], pieces: Iterable[Piece], most: int) -> Generator[Result, None, None]:
    """Yield what `work` makes of each piece, in their order, by as many processes as there are cores, at most `most`.

    `work`, the pieces and the results are pickled, so `work` is a module's. An error is raised here, and a ToolkitError
    where a process is killed. Ctrl-C is this process's alone: the others end when the iterator is closed, by this one's
    end too.
    """
    count = min(hardware.cores(), most)
    if count <= 1:
        yield from map(work, pieces)
        return
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, context, initializer=_end_with, initargs=(theirs,))
    begun: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            with _new_process():
                begun.append(pool.submit(work, piece))
            if len(begun) > AHEAD * count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
        pool.shutdown()
    except BrokenProcessPool:
        raise ToolkitError(
            f"one of {count} processes that share the work was ended from outside, perhaps for lack of memory",
            hint="run the same command again; under `taskset -c 0` one process does the work, with less memory",
        ) from None
    finally:
        ours.close()  # what they have begun is of no use now
        pool.shutdown(cancel_futures=True)
        theirs.close()


@contextlib.contextmanager
def _new_process() -> Iterator[None]:
    """Let processes that begin in the block ignore Ctrl-C, and not run the user's script, as multiprocessing does."""
    former, main = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}), sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _end_with(parent: Connection) -> None:
    """End this process when the other end of a pipe is closed: its parent needs it no more, or was killed."""

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            parent.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
