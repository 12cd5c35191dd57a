"""The library that trains, behind a few functions that are the same for all: Unsloth, or plain PEFT."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def said_of(exc: Exception) -> str:
    """Return the type of an exception and the first line of what it says."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return f"{type(exc).__name__}: {lines[0][:200] if lines else 'no message'}"


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
