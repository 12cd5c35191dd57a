"""What the doctor asks about training."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu
from toolkit.core.stage import Check
from toolkit.model import attention_kernels
from toolkit.model.precision import precision_of, uses_unsloth


def backend(config: Config, gpu: Gpu | None) -> Check:
    """Say which library trains, in which precision, and why; fail where the settings demand what is not there."""
    wanted, precision = config.train.backend, config.train.precision
    unsloth = hardware.installed("unsloth")
    if wanted == "unsloth" and (gpu is None or not unsloth):
        missing = "a CUDA GPU" if gpu is None else "the package unsloth"
        fix = 'set train.backend = "peft"' if gpu is None else 'pip install -c constraints.txt ".[cuda]"'
        return Check("backend", False, f"train.backend is unsloth, but this machine has not {missing}", fix)
    if gpu is None and precision == "f16":
        return Check("backend", False, "train.precision is f16, which needs a CUDA GPU", 'set train.precision = "auto"')
    if gpu is not None and precision == "f32":
        return Check(
            "backend", False, "train.precision is f32: a GPU trains in 16 bits", 'set train.precision = "auto"'
        )
    if gpu is not None and precision == "bf16" and not gpu.bf16:
        return Check("backend", False, f"{gpu.name} does not compute in bf16", 'set train.precision = "auto"')
    if uses_unsloth(config, gpu):
        return Check("backend", True, f"Unsloth in {precision_of(config, gpu)}", "")
    if gpu is not None and config.model.load_in_4bit and not hardware.installed("bitsandbytes"):
        fix = 'pip install -c constraints.txt ".[cuda]", or set model.load_in_4bit = false'
        return Check("backend", False, "4-bit loading needs the package bitsandbytes", fix)
    why = "as set" if wanted == "peft" else "Unsloth is not installed" if gpu else "there is no CUDA GPU"
    return Check("backend", True, f"PEFT ({why}) in {precision_of(config, gpu)}", "")


def attention(config: Config, gpu: Gpu) -> Check:
    """Name the kernel that attends to packed records on the GPU, and warn of the slow one."""
    unsloth = uses_unsloth(config, gpu)
    kernel = attention_kernels.expected(gpu, unsloth=unsloth)
    if kernel != attention_kernels.MASK:
        return Check("attention", True, kernel, "")
    fix = "pip install xformers" if unsloth else 'let Unsloth train: pip install -c constraints.txt ".[cuda]"'
    return Check("attention", None, kernel, fix)
