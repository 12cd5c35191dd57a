"""Which library and precision training takes on this machine."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu


def uses_unsloth(config: Config, gpu: Gpu | None) -> bool:
    """Tell whether training goes through Unsloth."""
    return gpu is not None and config.train.backend != "peft" and hardware.installed("unsloth")


def precision_of(config: Config, gpu: Gpu | None) -> str:
    """Resolve `auto` to what the device computes in."""
    if config.train.precision != "auto":
        return config.train.precision
    if gpu is None:
        return "bf16" if hardware.cpu_has_bf16() else "f32"
    return "bf16" if gpu.bf16 else "f16"
