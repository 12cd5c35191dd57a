"""A step's loss and gradient norms, copied to main memory while the GPU goes on with the next step.

Reading a number from the GPU waits for all that was launched before it. So a trainer that logs each step leaves the GPU
without work until the next step is launched: with a log line for 8 steps, short steps were 17 % faster (8 records, 8B,
one H100). Here the copy is launched, and read one step later.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Unread:
    """What will be logged of a step: its number, epoch, learning rate and start of training, and the copied numbers.

    `numbers` holds the summed loss of `steps`, the ones since the last log, and the gradient norm of each.
    """

    step: int
    epoch: float
    learning_rate: float
    start: float
    steps: list[int]
    numbers: torch.Tensor
    ended: Any  # the moment at which they are there

    def read(self) -> tuple[float, dict[int, float]]:
        """Return the summed loss and the norms by step; waits for the copy, not for what was launched after it."""
        if isinstance(self.ended, torch.cuda.Event):
            self.ended.synchronize()
        loss, *norms = self.numbers.tolist()
        return loss, dict(zip(self.steps, norms, strict=True))


def copy(numbers: Sequence[torch.Tensor]) -> tuple[torch.Tensor, Any]:
    """Start to copy single numbers to main memory; return the copy, and the moment at which it is there."""
    joint = torch.stack([number.detach().double().reshape(()) for number in numbers])
    if joint.device.type == "cuda":
        joint = torch.empty_like(joint, device="cpu", pin_memory=True).copy_(joint, non_blocking=True)
    return joint, now(numbers[0].device)


def now(device: torch.device) -> Any:
    """Return this moment; on a GPU it is when all that was launched so far is done, which may be yet to come."""
    if device.type != "cuda":
        return time.monotonic()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(start: Any, end: Any) -> float:
    """Return the seconds between two moments of one device; waits for the second one."""
    if not isinstance(end, torch.cuda.Event):
        return float(end - start)
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3
