"""Arrays on the disk while validation runs: they may be larger than the machine's memory."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.validate.metrics import Logits

RESERVE = 256 * 2**20  # bytes of disk left free for the report and whatever else writes meanwhile


@contextlib.contextmanager
def spill(folder: Path, rows: int, width: int) -> Iterator[Logits]:
    """Yield a float32 array of shape (rows, width) in an unlinked file, which cannot be left behind.

    Its blocks are allocated at once, because a full disk under a memory map kills the process. Raises ToolkitError
    if there is no room.
    """
    need = rows * width * 4
    free = shutil.disk_usage(folder).free
    if need + RESERVE > free:
        raise _no_room(folder, need, free)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.posix_fallocate(file.fileno(), 0, need)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise _no_room(folder, need, shutil.disk_usage(folder).free) from None
            raise
        yield np.memmap(file, dtype=np.float32, mode="r+", shape=(rows, width))


def _no_room(folder: Path, need: int, free: int) -> ToolkitError:
    return ToolkitError(
        f"the last layer's states need {console.size(need)} of disk in `{folder}` while validation runs, but "
        f"{console.size(free)} is free",
        hint="free some space, move the run folder to a larger disk, or score fewer rows (`validate.rows`)",
    )
