"""The memory that a block takes at its peak, beside the files that it maps."""

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MMAP_THRESHOLD = -3  # malloc.h: M_MMAP_THRESHOLD


@dataclass
class Peak:
    """Bytes of this process that no file backs: at the start of the block, and at the most."""

    start: int
    most: int

    @property
    def taken(self) -> int:
        """What the block took."""
        return self.most - self.start


def anonymous() -> int:
    """Return the bytes of memory of this process that no file backs."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@contextmanager
def watched() -> Iterator[Peak]:
    """Look at the memory every millisecond while the block runs; what was freed before goes back to the system."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 1 << 16)  # what is freed goes back at once; else it stays in holes, now and then
    gc.collect()
    libc.malloc_trim(0)  # else the block takes it again unseen
    peak, ended = Peak(anonymous(), 0), threading.Event()

    def look() -> None:
        while not ended.wait(0.001):
            peak.most = max(peak.most, anonymous())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()
