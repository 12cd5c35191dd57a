"""A library that trains on a device, behind a few functions that are the same for all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from toolkit import machine
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

    `load` gives the model with a fresh adapter, on a device, for passes in a torch dtype; `loss` the summed cross
    entropy of a batch (nats) divided by a number; `padded` tells whether this model needs padded rows instead of packed
    ones; `infer` readies it for generation.
    """

    name: str
    device: str
    reason: str
    load: Callable[[Base, Config, Plan, Any, Any], Any]
    loss: Callable[[Any, Batch, Any], Any]
    padded: Callable[[Any], bool]
    infer: Callable[[Any], None]

    def precision(self, wanted: str) -> str:
        """Resolve `auto` to what the device computes in: bf16, f16 or f32; raises ToolkitError where it cannot."""
        if wanted == "f32" and self.device == "cuda":
            raise ToolkitError(
                "train.precision is f32, but a card trains in 16 bits here",
                hint="leave train.precision out, or set it to bf16 or f16",
            )
        if wanted != "auto":
            return wanted
        if self.device == "cpu":
            return "bf16" if machine.cpu_has_bf16() else "f32"
        return "bf16" if card_has_bf16() else "f16"


def dequantize(model: Any, dtype: Any) -> Any:
    """Write the values of a model's 4-bit weights out in the 16 bits in which every pass would multiply them anyway."""
    import torch

    model = model.dequantize(dtype=dtype).requires_grad_(False)  # the repository may name another type
    torch.cuda.empty_cache()
    return model


def card_has_bf16() -> bool:
    """Tell whether the current card multiplies bf16 in hardware (Ampere and later); emulated, f16 is faster."""
    import torch

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))
