"""The library that trains, behind a few functions that are the same for all: Unsloth, or plain PEFT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.model.base import Base
from toolkit.model.memory_plan import MemoryPlan
from toolkit.model.precision import resolve_precision


class UnslothFailed(ToolkitError):
    """Unsloth is installed but does not work here; the caller may start another process without it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Unsloth does not work here: {reason}", hint='set train.backend = "peft"', exit_code=MISSING)
        self.reason = reason


@dataclass(frozen=True)
class Backend:
    """How to load a model to train here.

    `load(base, config, plan, device, dtype)` returns the model with a fresh adapter, for passes in a torch dtype. On
    the device None it stays in main memory, and FSDP shards it from there. `infer` prepares it for generation.
    """

    name: str
    device: str
    reason: str
    load: Callable[[Base, Config, MemoryPlan, Any, Any], Any]
    infer: Callable[[Any], None]

    def precision(self, wanted: str) -> str:
        """Resolve `auto` to what the device computes in: bf16, f16 or f32."""
        return resolve_precision(wanted, gpu_has_bf16() if self.device == "cuda" else None)


def choose(wanted: str, avoid: str = "") -> Backend:
    """Choose Unsloth if it is installed and there is a CUDA GPU, else plain PEFT; or what the settings demand.

    `avoid` says why Unsloth must not be used although it is installed. `precision.check_backend` has checked what the
    settings demand. Raises UnslothFailed.
    """
    from toolkit.train import peft_backend, unsloth_backend

    cuda = sees_gpu()
    if wanted == "unsloth" or (wanted == "auto" and cuda and hardware.installed("unsloth") and not avoid):
        return unsloth_backend.make_unsloth_backend()
    why = "plain PEFT"
    if wanted == "auto" and not cuda:
        why = "plain PEFT, because there is no CUDA GPU"
    elif wanted == "auto":
        # Measured on an H100, by the plan: 56 % with recomputed activations, 79 % for short steps with all kept.
        cost = "the same result, at half to four fifths of Unsloth's speed"
        why = f"plain PEFT, because {avoid or 'Unsloth is not installed'}: {cost}"
    return peft_backend.make_peft_backend("cuda" if cuda else "cpu", why)


def sees_gpu() -> bool:
    """Tell whether torch sees a CUDA GPU."""
    import torch

    return bool(torch.cuda.is_available())


def gpu_name() -> str:
    """Return the name of the CUDA GPU that torch sees, empty without one."""
    import torch

    return str(torch.cuda.get_device_name()) if sees_gpu() else ""


def gpu_has_bf16() -> bool:
    """Tell whether the current GPU multiplies bf16 in hardware (Ampere and later); emulated, f16 is faster."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def dequantize(model: Any, dtype: Any) -> Any:
    """Expand a model's 4-bit weights to 16 bits, in which every pass would multiply them anyway."""
    import torch

    model = model.dequantize(dtype=dtype).requires_grad_(False)  # the repository may name another type
    torch.cuda.empty_cache()
    return model
