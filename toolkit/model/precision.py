"""Which library and precision training uses on this machine, and which it cannot use."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.hardware import Gpu

FP8_CAPABILITY = (8, 9)  # NVIDIA's Ada; the first with tensor cores for e4m3
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


def check_base_compute(config: Config, capability: tuple[int, int] | None, precision: str, *, sharded: bool) -> None:
    """Raise ToolkitError (exit 3) if the settings demand FP8 for the frozen weights, and it cannot be used."""
    refusal = fp8_refusal(capability, precision, sharded=sharded)
    if config.train.base_compute == "fp8" and refusal:
        hint = 'set train.base_compute = "auto"'
        raise ToolkitError(f"train.base_compute is fp8, but {refusal}", hint=hint, exit_code=MISSING)


def fp8_refusal(capability: tuple[int, int] | None, precision: str, *, sharded: bool) -> str:
    """Return why the frozen weights cannot be multiplied in FP8 here; empty if it can be tried.

    `capability` is the CUDA GPU's, None without one; `sharded`: FSDP divides the model.
    """
    if capability is None:
        return "there is no CUDA GPU"
    if capability < FP8_CAPABILITY:
        need = ".".join(map(str, FP8_CAPABILITY))
        return f"this GPU has capability {capability[0]}.{capability[1]}, and FP8 products need {need} (Ada, Hopper)"
    if precision != "bf16":
        return f"FP8 products give bf16, and the precision here is {precision}"
    if sharded:
        return "FSDP divides the weights, which FP8 keeps whole, once by rows and once by columns"
    if not hardware.installed("triton"):
        return "the package triton, which quantizes the activations, is not installed"
    return ""


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
