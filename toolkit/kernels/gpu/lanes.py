"""Lanes to the GPU and back: page-locked memory that the GPU reads directly, and a stream for each.

Copies from ordinary memory reach a tenth of what the bus can do. One thread uses a lane at a time; its memory is
locked once for the whole process.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

PIECE = 1 << 22  # weights that go to the GPU at a time: 16 MB of float32
COUNT = 8  # lanes at most: this many threads fill the bus
LARGEST = 34 / 32  # bytes that a weight becomes at most (Q8_0)
BLOCK = 32  # weights of the smallest block


@dataclass
class Lane:
    """Memory for a piece on its way to the GPU, and its bytes and flags on the way back; `stream` is None on a CPU."""

    device: str
    stream: Any
    sent: Any
    written: Any
    flags: Any

    def to_device(self, rows: Any) -> Any:
        """Return a piece as a tensor on the device, at an address for words of 64 bits.

        NumPy's uint16 is bfloat16: it becomes float32 there, so one kernel does for both.
        """
        import torch

        if isinstance(rows, np.ndarray):
            kind = torch.bfloat16 if rows.dtype == np.uint16 else torch.float32
            if rows.nbytes > self.sent.numel():  # a single row of more than PIECE weights
                self.sent = locked(rows.nbytes)
            staged = self.sent[: rows.nbytes]
            np.copyto(staged.numpy(), rows.reshape(-1).view(np.uint8))
            return staged.view(kind).view(rows.shape).to(self.device, non_blocking=True).float()
        moved = rows.to(self.device, non_blocking=True)
        return moved.clone() if moved.data_ptr() % 8 else moved

    def from_device(self, written: Any, flags: Any, out: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
        """Copy what the device wrote into `out`, and wait for it; return the flags, good until the next piece."""
        if written.numel() > self.written.numel() or len(flags) > len(self.flags):
            self.written, self.flags = locked(written.numel()), locked(len(flags))
        staged, marks = self.written[: written.numel()], self.flags[: len(flags)].view(flags.dtype)
        staged.copy_(written.reshape(-1), non_blocking=True)
        marks.copy_(flags, non_blocking=True)
        if self.stream is not None:
            self.stream.synchronize()
        np.copyto(out.reshape(-1), staged.numpy())
        found: npt.NDArray[np.int8] = marks.numpy()
        return found


_idle: list[Lane] = []
_room = threading.BoundedSemaphore(COUNT)


@contextmanager
def borrowed(device: str) -> Iterator[Lane]:
    """Lend a lane to this thread and make its stream the current one; waits while all are lent.

    A lane in which something failed is not lent again.
    """
    import torch

    with _room, ExitStack() as stack:
        lane = _take(device)
        if lane.stream is not None:
            lane.stream.wait_stream(torch.cuda.current_stream())  # rows on the GPU may still be incomplete
            stack.enter_context(torch.cuda.stream(lane.stream))
        yield lane
        _idle.append(lane)


def _take(device: str) -> Lane:
    import torch

    try:
        while True:
            lane = _idle.pop()
            if lane.device == device:
                return lane
    except IndexError:
        stream = torch.cuda.Stream() if device == "cuda" else None
        return Lane(device, stream, locked(4 * PIECE), locked(int(LARGEST * PIECE)), locked(PIECE // BLOCK))


def locked(size: int) -> Any:
    """Return `size` bytes that the GPU can read directly; ordinary memory if none can be locked or there is no GPU."""
    import torch

    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        return torch.empty(size, dtype=torch.uint8)
