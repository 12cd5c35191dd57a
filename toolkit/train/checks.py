"""What the doctor asks about training."""

from toolkit.core import hardware
from toolkit.core.config import Config
from toolkit.core.hardware import Gpu
from toolkit.core.stage import Check
from toolkit.model import attention_kernels
from toolkit.model.precision import precision_of, uses_unsloth


def backend(config: Config, card: Gpu | None) -> Check:
    """Say which library trains, in which precision, and why; fail where the settings demand what is not there."""
    wanted, precision = config.train.backend, config.train.precision
    unsloth = hardware.installed("unsloth")
    if wanted == "unsloth" and (card is None or not unsloth):
        missing = "a CUDA card" if card is None else "the package unsloth"
        fix = 'set train.backend = "peft"' if card is None else 'pip install -c constraints.txt ".[cuda]"'
        return Check("backend", False, f"train.backend is unsloth, but this machine has not {missing}", fix)
    if card is None and precision == "f16":
        return Check(
            "backend", False, "train.precision is f16, which needs a CUDA card", 'set train.precision = "auto"'
        )
    if card is not None and precision == "f32":
        return Check(
            "backend", False, "train.precision is f32: a card trains in 16 bits", 'set train.precision = "auto"'
        )
    if card is not None and precision == "bf16" and not card.bf16:
        return Check("backend", False, f"{card.name} does not compute in bf16", 'set train.precision = "auto"')
    if uses_unsloth(config, card):
        return Check("backend", True, f"Unsloth in {precision_of(config, card)}", "")
    if card is not None and config.model.load_in_4bit and not hardware.installed("bitsandbytes"):
        fix = 'pip install -c constraints.txt ".[cuda]", or set model.load_in_4bit = false'
        return Check("backend", False, "4-bit loading needs the package bitsandbytes", fix)
    why = "as set" if wanted == "peft" else "Unsloth is not installed" if card else "there is no CUDA card"
    return Check("backend", True, f"PEFT ({why}) in {precision_of(config, card)}", "")


def attention(config: Config, card: Gpu) -> Check:
    """Name the kernel that attends to packed records on the card, and warn of the slow one."""
    unsloth = uses_unsloth(config, card)
    kernel = attention_kernels.expected(card, unsloth=unsloth)
    if kernel != attention_kernels.MASK:
        return Check("attention", True, kernel, "")
    fix = "pip install xformers" if unsloth else 'let Unsloth train: pip install -c constraints.txt ".[cuda]"'
    return Check("attention", None, kernel, fix)
