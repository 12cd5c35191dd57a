"""Work that several processes share, in order. They end with this one, however it ends."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from toolkit.core import hardware

AHEAD = 2  # pieces for each process that are begun before the first of them is asked for
LOOK = 1.0  # seconds between looks at the parent

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def shared(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """Yield what `work` makes of each piece, in their order, by as many processes as there are cores.

    All three are pickled; an error is raised here. Ctrl-C is this process's alone: the others finish their piece.
    """
    count = hardware.cores()
    pool = ProcessPoolExecutor(count, get_context("spawn"), initializer=_end_with, initargs=(os.getpid(),))
    begun: deque[Future[Result]] = deque()
    try:
        for piece in pieces:
            former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process takes it over
            try:
                begun.append(pool.submit(work, piece))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, former)
            if len(begun) > AHEAD * count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, which may have been killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
