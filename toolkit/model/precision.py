"""Which library and precision training uses on this machine, and which it cannot use."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.hardware import Gpu

INSTALL = 'pip install -c constraints.txt ".[cuda]"'


def check_backend(config: Config, gpu_name: str, *, bf16: bool, avoid_unsloth: bool = False) -> None:
    """Raise ToolkitError (exit 3) if the settings require a library or a precision that is not available.

    `gpu_name` is the CUDA GPU's, empty without one; `bf16` tells whether it computes in bf16.
    """
    settings, unsloth = config.train, hardware.installed("unsloth")
    automatic = 'set train.precision = "auto"'
    found = ("", "")
    needed = gpu_name and (settings.backend == "peft" or not unsloth or avoid_unsloth)  # Unsloth installs bitsandbytes
    if settings.backend == "unsloth" and not gpu_name:
        found = "train.backend is unsloth, but this machine has no CUDA GPU", 'set train.backend = "peft"'
    elif settings.backend == "unsloth" and not unsloth:
        found = "train.backend is unsloth, but the package unsloth is not installed", INSTALL
    elif settings.precision == "f16" and not gpu_name:
        found = "train.precision is f16, which needs a CUDA GPU", automatic
    elif settings.precision == "f32" and gpu_name:
        found = "train.precision is f32, but a GPU trains in 16 bits here", automatic
    elif settings.precision == "bf16" and gpu_name and not bf16:
        found = f"{gpu_name} does not compute in bf16", automatic
    elif needed and config.model.load_in_4bit and not hardware.installed("bitsandbytes"):
        found = "4-bit loading needs the package bitsandbytes", f"{INSTALL}, or set model.load_in_4bit = false"
    if found[0]:
        raise ToolkitError(found[0], hint=found[1], exit_code=MISSING)


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
