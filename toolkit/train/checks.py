"""What the doctor asks about training."""

from toolkit.core.config import Config
from toolkit.core.hardware import Gpu
from toolkit.core.stage import Check
from toolkit.model import attention_kernels, base
from toolkit.model.model_config import read_config
from toolkit.model.precision import INSTALL, check_backend, check_base_compute, precision_of, uses_unsloth
from toolkit.model.states import reason_to_pad


def backend(config: Config, gpu: Gpu | None) -> Check:
    """Say which library trains, in which precision, and why; raises ToolkitError if the settings cannot be met."""
    check_backend(config, gpu.name if gpu else "", bf16=gpu is not None and gpu.bf16)
    precision = precision_of(config, gpu)
    check_base_compute(config, gpu.capability if gpu else None, precision, sharded=False)
    if config.train.base_compute == "fp8":
        precision += ", the frozen weights in FP8"
    if uses_unsloth(config, gpu):
        return Check("backend", True, f"Unsloth in {precision}", "")
    why = "Unsloth is not installed" if gpu else "there is no CUDA GPU"
    why = "as set" if config.train.backend == "peft" else why
    return Check("backend", True, f"PEFT ({why}) in {precision}", "")


def attention(config: Config, gpu: Gpu) -> Check:
    """Name the kernel that attends to packed records on the GPU, and warn of the slow one.

    Records of some bases are never packed, as far as the base's config.json is on this machine.
    """
    label = config.model.base
    folder = base.small_files(label, base.revision_of(label, config.model), offline=True)
    if folder is not None and (alone := reason_to_pad(read_config(folder))):
        return Check("attention", True, f"torch's, a row for each record: {alone}", "")
    unsloth = uses_unsloth(config, gpu)
    kernel = attention_kernels.expected(gpu, unsloth=unsloth)
    if kernel != attention_kernels.MASK:
        return Check("attention", True, kernel, "")
    fix = "pip install xformers" if unsloth else f"train with Unsloth: {INSTALL}"
    return Check("attention", None, kernel, fix)
