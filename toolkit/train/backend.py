"""Which library trains, on which device: chosen by what the machine has, behind the same few functions."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import MISSING, ToolkitError
from toolkit.memory import Plan
from toolkit.train.batches import Batch


class UnslothFailed(ToolkitError):
    """Unsloth is installed but does not work here; whoever started this process may start another one without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Unsloth does not work here: {reason}", hint='set train.backend = "peft"', exit_code=MISSING)
        self.reason = reason


@dataclass(frozen=True)
class Backend:
    """How to train here.

    `load` gives the model with a fresh adapter, placed on the device of this process; `loss` the summed cross entropy
    of a batch (nats) divided by a number; `padded` tells whether this model needs padded rows instead of packed ones;
    `infer` readies it for generation.
    """

    name: str
    device: str
    reason: str
    load: Callable[[Base, Config, Plan, Any], Any]
    loss: Callable[[Any, Batch, Any], Any]
    padded: Callable[[Any], bool]
    infer: Callable[[Any], None]

    def precision(self, wanted: str) -> str:
        """Resolve `auto` to what the device computes in: bf16, f16 or f32."""
        if wanted != "auto":
            return wanted
        if self.device == "cpu":
            return "bf16" if cpu_has_bf16() else "f32"
        import torch

        return "bf16" if torch.cuda.is_bf16_supported() else "f16"


def choose(wanted: str, avoid: str = "") -> Backend:
    """Choose Unsloth where there is a CUDA card and it is installed, else plain PEFT; or what the settings demand.

    `avoid` says why Unsloth is not to be taken although it is installed. Raises ToolkitError (exit 3) where Unsloth is
    demanded and cannot run.
    """
    cuda = has_cuda()
    installed = importlib.util.find_spec("unsloth") is not None
    if wanted == "unsloth" or (wanted == "auto" and cuda and installed and not avoid):
        missing = [name for name, there in (("a CUDA card", cuda), ("the package unsloth", installed)) if not there]
        if missing:
            raise ToolkitError(
                f"train.backend is unsloth, but this machine has not {' and not '.join(missing)}",
                hint='install it with `pip install -c constraints.txt ".[cuda]"`, or set train.backend = "peft"',
                exit_code=MISSING,
            )
        from toolkit.train import unsloth_backend

        return unsloth_backend.backend()
    from toolkit.train import peft_backend

    if wanted == "peft":
        why = "plain PEFT"
    elif not cuda:
        why = "plain PEFT, because there is no CUDA card"
    else:
        why = f"plain PEFT, because {avoid or 'Unsloth is not installed'}: the same result, at less than half the speed"
    return peft_backend.backend("cuda" if cuda else "cpu", why)


def has_cuda() -> bool:
    """Tell whether torch sees a CUDA card."""
    import torch

    return bool(torch.cuda.is_available())


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 in hardware (avx512_bf16 or amx_bf16); emulated, it would be slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
