"""Attention of the records in a packed row on a CUDA GPU: the kernels, and the one that training will use."""

from toolkit.core import hardware
from toolkit.core.hardware import Gpu

FLASH_ATTN = "flash-attn, one kernel for all records"
VARLEN = "torch's flash attention, one kernel for all records"
XFORMERS = "xformers, one kernel for all records"
MASK = "torch's attention over the whole row under a mask, which is slow"
CAPABILITY = (8, 0)  # torch's kernel is built for Ampere and later, flash-attn's too


def expected(gpu: Gpu, *, unsloth: bool) -> str:
    """Return the name of the kernel that training on this GPU will use; Unsloth knows more of them than PEFT."""
    recent = gpu.capability >= CAPABILITY
    if unsloth and recent and hardware.installed("flash_attn"):
        return FLASH_ATTN
    if recent and gpu.flash:
        return VARLEN
    return XFORMERS if unsloth and hardware.installed("xformers") else MASK
