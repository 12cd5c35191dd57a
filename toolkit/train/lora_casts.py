"""LoRA's float32 matrices in the 16 bits of a pass, all at once.

Unsloth casts each matrix in each layer, forward and backward, and autograd casts each gradient back: 1,350 kernels in a
step of Llama-3.1-8B. A short step waits for their launches. The numbers are the same, because each is rounded once.
"""

import functools
from typing import Any

import torch
from torch._utils import _unflatten_dense_tensors

NAMES = (".lora_A.", ".lora_B.")


class Casts(torch.autograd.Function):  # type: ignore[misc]
    """Float32 matrices → the same in another dtype, parts of one block of memory; the gradients return likewise."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *matrices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Copy the matrices."""
        ctx.set_materialize_grads(False)
        return copied(matrices, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[Any, ...]:
        """Copy the gradients, which only the matrices in use have."""
        found = iter(copied([one for one in gradients if one is not None], torch.float32))
        return None, *(None if one is None else next(found) for one in gradients)


def copied(tensors: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return contiguous copies of some tensors of one device, in a dtype, in one block of memory."""
    if not tensors:
        return ()
    block = torch.empty(sum(one.numel() for one in tensors), dtype=dtype, device=tensors[0].device)
    copies: tuple[torch.Tensor, ...] = _unflatten_dense_tensors(block, tensors)
    torch._foreach_copy_(copies, tensors)
    return copies


def cast_together(model: Any, fast_lora: Any, dtype: torch.dtype) -> int:
    """Let each training pass of a model cast LoRA's float32 matrices once, and return how many these are.

    `fast_lora` is the module `unsloth.kernels.fast_lora`, whose functions ask for the matrices of a layer. `dtype` is
    the one that a pass computes in. For one process without checkpointing: all gradients are ready at the end of the
    backward pass only, and a layer that is computed again would go through the copies twice. Not for passes that
    Unsloth compiles.
    """
    matrices = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dtype == torch.float32 and any(part in name for part in NAMES)
    ]
    now: dict[int, torch.Tensor] = {}
    ask = getattr(fast_lora.get_lora_parameters, "__wrapped__", fast_lora.get_lora_parameters)

    def begin(module: Any, _: Any) -> None:
        now.clear()
        if matrices and module.training and torch.is_grad_enabled():
            now.update(zip(map(id, matrices), Casts.apply(dtype, *matrices), strict=True))

    @functools.wraps(ask)
    def parameters(layer: Any) -> tuple[Any, ...]:
        weight, state, a, b, scale = ask(layer)
        return weight, state, now.get(id(a), a), now.get(id(b), b), scale

    layers = model.get_base_model().get_decoder()  # a loss in chunks calls it, and not the whole model
    layers.register_forward_pre_hook(begin)
    layers.register_forward_hook(lambda *_: now.clear(), always_call=True)
    fast_lora.get_lora_parameters = parameters
    return len(matrices)
