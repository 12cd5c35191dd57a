"""Which library and precision training takes on this machine."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu


def uses_unsloth(config: Config, gpu: Gpu | None) -> bool:
    """Tell whether training goes through Unsloth."""
    return gpu is not None and config.train.backend != "peft" and hardware.installed("unsloth")


def precision_of(config: Config, gpu: Gpu | None) -> str:
    """Resolve `auto` to what the device computes in."""
    return resolve_precision(config.train.precision, None if gpu is None else gpu.bf16)


def resolve_precision(wanted: str, gpu_bf16: bool | None) -> str:
    """Return bf16, f16 or f32 for the setting; `gpu_bf16` tells whether the GPU has bf16, and is None without one."""
    if wanted != "auto":
        return wanted
    if gpu_bf16 is None:
        return "bf16" if hardware.cpu_has_bf16() else "f32"
    return "bf16" if gpu_bf16 else "f16"
