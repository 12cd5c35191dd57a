"""Several processes that train together, one a device, as accelerate or torchrun started them; or this one alone.

What fits one card is trained by data parallelism: each worker computes its share of a step's records, and the adapter's
gradients, which are small, are added up once a step. Larger models are sharded by accelerate's FSDP, as its own
configuration says. Worker 0 alone writes and prints.
"""

import contextlib
import ctypes
import datetime
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import machine
from toolkit.errors import MISSING, ToolkitError

PATIENCE = datetime.timedelta(hours=24)  # worker 0 may have a model to download before the others have work

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Workers:
    """This process's place among those that train together; `sharded` where accelerate's FSDP divides the model."""

    rank: int = 0
    count: int = 1
    local: int = 0
    sharded: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def device(self, kind: str) -> Any:
        """Return the device of this worker."""
        import torch

        return torch.device("cpu") if kind == "cpu" else torch.device("cuda", self.local)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Add each value up over all workers, in float64."""
        return self._together(values, "SUM")

    def highest(self, values: Sequence[float]) -> list[float]:
        """Return the highest of each value over all workers."""
        return self._together(values, "MAX")

    def _together(self, values: Sequence[float], how: str) -> list[float]:
        if self.count == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=getattr(dist.ReduceOp, how))
        return [float(value) for value in tensor]

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, in order."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def say(self, value: Any) -> Any:
        """Return worker 0's value to all."""
        return self.gather(value if self.first else None)[0]

    def add_up(self, tensors: Iterable[Any]) -> None:
        """Add each tensor up over all workers, in place."""
        if self.count == 1:
            return
        import torch.distributed as dist

        for tensor in tensors:
            dist.all_reduce(tensor)

    def equalize(self, parameters: Iterable[Any]) -> None:
        """Give every worker worker 0's values of the trainable parameters."""
        if self.count == 1 or self.sharded:
            return
        import torch.distributed as dist

        for parameter in parameters:
            if parameter.requires_grad:
                dist.broadcast(parameter.data, src=0)


def rank() -> int:
    """Return this process's number among those that were launched together."""
    return int(os.environ.get("RANK", "0")) if machine.launched() else 0


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide what libraries print to standard output: the first worker shows the same. Errors are still shown."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def join() -> Workers:
    """Find this process's place, and meet the others if there are any; a second call changes nothing."""
    if not machine.launched():
        return Workers()
    import torch
    import torch.distributed as dist

    local = int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and not cuda:
        raise ToolkitError("FSDP shards a model over CUDA cards, and there is none", exit_code=MISSING)
    if sharded and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ToolkitError(
            "accelerate's configuration asks for FSDP version 1, which cannot compute the loss in pieces",
            hint="set `fsdp_version: 2` under fsdp_config, or launch with `--fsdp_version 2`",
        )
    return Workers(dist.get_rank(), dist.get_world_size(), local, sharded)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is killed; a system that cannot goes without."""
    try:
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def leave() -> None:
    """End the group, so that the processes can end."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
