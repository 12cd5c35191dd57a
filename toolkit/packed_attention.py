"""Attention of the records in a packed row on a CUDA card: which kernels there are, and which one training will take.

One kernel for all records is about twice as fast, by the whole step, as one call for each.
"""

from toolkit import machine
from toolkit.machine import Card

FLASH_ATTN = "flash-attn, one kernel for all records"
VARLEN = "torch's flash attention, one kernel for all records"
XFORMERS = "xformers, one kernel for all records"
LOOP = "torch's attention, one call for each record, which is slow"
CAPABILITY = (8, 0)  # torch's kernel is built for Ampere and later, flash-attn's too


def expected(card: Card, *, unsloth: bool) -> str:
    """Return the name of the kernel that training on this card will take; Unsloth knows more of them than PEFT."""
    recent = card.capability >= CAPABILITY
    if unsloth and recent and machine.installed("flash_attn"):
        return FLASH_ATTN
    if recent and card.flash:
        return VARLEN
    return XFORMERS if unsloth and machine.installed("xformers") else LOOP
