"""Which library and precision training takes on this machine."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu


def uses_unsloth(config: Config, card: Gpu | None) -> bool:
    """Tell whether training goes through Unsloth."""
    return card is not None and config.train.backend != "peft" and hardware.installed("unsloth")


def precision_of(config: Config, card: Gpu | None) -> str:
    """Resolve `auto` to what the device computes in."""
    if config.train.precision != "auto":
        return config.train.precision
    if card is None:
        return "bf16" if hardware.cpu_has_bf16() else "f32"
    return "bf16" if card.bf16 else "f16"
