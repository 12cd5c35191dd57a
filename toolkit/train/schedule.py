"""The optimizer, and the learning rate as a function of the step."""

import math
from typing import Any

from toolkit import console, machine
from toolkit.config import TrainSettings


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Return the learning rate of step number `step` (from 0), as transformers' schedules of the same names define it.

    The warm-up starts at zero, so the first step of a run with a warm-up changes nothing.
    """
    warmup, total = settings.warmup_steps, settings.steps
    if settings.scheduler == "constant":
        return settings.learning_rate
    if step < warmup:
        return settings.learning_rate * step / max(1, warmup)
    if settings.scheduler == "constant_with_warmup":
        return settings.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    if settings.scheduler == "cosine":
        return settings.learning_rate * max(0.0, 0.5 * (1 + math.cos(math.pi * done)))
    return settings.learning_rate * max(0.0, (total - step) / max(1, total - warmup))


def optimizer(
    parameters: list[Any], settings: TrainSettings, *, cuda: bool, sharded: bool = False, quiet: bool = False
) -> Any:
    """Return AdamW over the adapter, with 8-bit moments on CUDA where bitsandbytes is installed and they are wanted.

    bitsandbytes' kernels refuse the tensors that FSDP shards; those have float32 moments, each card its share.
    """
    import torch

    values = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay, "betas": (0.9, 0.999), "eps": 1e-8}
    if settings.optimizer == "adamw_8bit":
        if cuda and not sharded and machine.installed("bitsandbytes"):
            import bitsandbytes

            return bitsandbytes.optim.AdamW8bit(parameters, **values)
        if not quiet:
            lack = "adamw_8bit cannot be sharded" if sharded else "adamw_8bit needs CUDA and bitsandbytes"
            console.say(f"optimizer: adamw_torch, because {lack}")
    return torch.optim.AdamW(parameters, fused=cuda, **values)
