"""Several processes that train together, one a GPU, as accelerate or torchrun launched them; or this one alone.

accelerate does the work (DDP, FSDP2, DeepSpeed, several machines, as its own configuration says). Here the other
processes wait for the first one. Only that one writes, prints, and may have a model to download.
"""

import contextlib
import ctypes
import datetime
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.core import hardware
from toolkit.core.errors import MISSING, ToolkitError

REQUEST = "toolkit_request"
DOWNLOAD = datetime.timedelta(hours=24)  # how long the others wait for the first one's request
ANOTHER_ENDED = "another training process ended"
GOES_ON = "its own message stands above, if it left one; the same command continues from the last checkpoint"
_LIBC = ctypes.CDLL(None)  # now: a fork of a process with threads must not load a library
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl


def rank() -> int:
    """Return this process's number among those that were launched together."""
    return hardware.number_in("RANK", 0) if hardware.launched() else 0


def sharded() -> bool:
    """Tell whether accelerate's configuration divides the model among the processes (FSDP)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def check() -> None:
    """Raise ToolkitError if accelerate's configuration asks for something that cannot train here."""
    if sharded() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ToolkitError(
            "accelerate's configuration asks for FSDP version 1; the toolkit shards with version 2",
            hint="set `fsdp_version: 2` under fsdp_config, or launch with `--fsdp_version 2`",
            exit_code=MISSING,
        )


def send_request(request: dict[str, Any]) -> None:
    """Tell the other processes what to train."""
    _store().set(REQUEST, json.dumps(request))


def dismiss() -> None:
    """Let the other processes end, if there are any that were not asked for anything."""
    if hardware.launched():
        store = _store()
        if not store.check([REQUEST]):
            store.set(REQUEST, json.dumps(None))


def wait_for_request() -> dict[str, Any] | None:
    """Wait for the first process's request; None if there is nothing to do."""
    store = _store()
    store.wait([REQUEST], DOWNLOAD)
    found: dict[str, Any] | None = json.loads(store.get(REQUEST))
    return found


def _store() -> Any:
    """Return the launcher's key-value store. It needs no process group, whose time-out would end a long download."""
    from torch.distributed import rendezvous

    store, _, _ = next(rendezvous("env://"))
    return store


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hide what libraries print to standard output: the first process shows the same. Errors are still shown."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def another_ended(exc: Exception) -> ToolkitError | None:
    """Explain what this process saw when another one of those that train together ended; None if it was not that.

    gloo reports a plain RuntimeError, NCCL's are subclasses of torch's DistError.
    """
    broken = any(klass.__name__ == "DistError" for klass in type(exc).__mro__)
    gone = re.search(r"Connection closed by peer|gloo.*(Connection reset by peer|Broken pipe)", str(exc))
    if not hardware.launched() or not (broken or gone):
        return None
    return ToolkitError(ANOTHER_ENDED, hint=GOES_ON)


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent is killed; on other systems this does nothing."""
    try:
        _LIBC.prctl(DIE_WITH_PARENT, signal.SIGKILL)
    except (OSError, AttributeError):
        return
