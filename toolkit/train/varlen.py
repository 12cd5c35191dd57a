"""One attention kernel for all records of a packed row, on CUDA: torch's own flash attention of variable lengths.

Looping over records instead costs about half of a step: 0.8 of 1.8 seconds at 16,384 tokens on an H100. Unsloth takes
this kernel by itself from torch 2.12 on; for torch 2.11 the same kernel is offered to it here.
"""

import functools
from typing import Any

from toolkit import console
from toolkit.packed_attention import CAPABILITY, FLASH_ATTN, LOOP, VARLEN, XFORMERS

WIDEST = 256  # dimensions of a head


def attention(
    query: Any, key: Any, value: Any, ends: Any, longest: int, *, scale: float | None = None, window: int | None = None
) -> Any:
    """Attend causally inside each record of a packed row; (tokens, heads, width) → the same shape, f16 or bf16.

    Key and value may have fewer heads, each for a group of the query's. `ends` is int32 on the device, (records + 1,),
    0 first and the number of tokens last; `longest` is the longest record's tokens; `window` how many keys back a query
    looks, itself included. Differentiable. Raises what torch raises where the card or the dtype has no such kernel.
    """
    return _function().apply(query, key, value, ends, longest, scale, window)


def supported(device: Any, dtype: Any, width: int) -> bool:
    """Tell whether the kernel runs for this device, dtype and head width."""
    import torch

    if torch.device(device).type != "cuda" or torch.version.hip is not None:
        return False
    return (
        torch.cuda.get_device_capability(device) >= CAPABILITY
        and dtype in (torch.float16, torch.bfloat16)
        and width <= WIDEST
        and width % 8 == 0
        and bool(getattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)())
    )


def offer_to_unsloth() -> str:
    """Give Unsloth the kernel where this torch's own interface lacks what it needs, and name what it will use.

    Unsloth 2026.10.9 looks for it in `unsloth.utils.attention_dispatch`, once, at import, and with it takes it before
    xformers. A later version that looks elsewhere keeps its own way, and the name says so.
    """
    import torch
    from unsloth.utils import attention_dispatch as dispatch

    if not hasattr(dispatch, "_TORCH_VARLEN_ATTN") or not hasattr(dispatch, "select_attention_backend"):
        return "Unsloth's own choice"
    fits = supported(torch.cuda.current_device(), torch.bfloat16, 128)
    if fits and dispatch._TORCH_VARLEN_ATTN is None:
        dispatch._TORCH_VARLEN_ATTN = _as_torch_does
        dispatch._LEAN_VARLEN = False  # its shorter way asks torch for what 2.11 has not
        dispatch._NATIVE_BEATS_XFORMERS = True
    taken = dispatch.select_attention_backend(use_varlen=True)
    return {"flash_varlen": FLASH_ATTN, "xformers": XFORMERS}.get(taken, VARLEN if fits else LOOP)


def announce(kernel: str) -> None:
    """Say which kernel attends to packed records; the slow one with a warning."""
    (console.warn if kernel == LOOP else console.say)(f"attention of packed records: {kernel}")


def _as_torch_does(
    query: Any,
    key: Any,
    value: Any,
    ends: Any,
    key_ends: Any,
    longest: int,
    longest_key: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, 0),
    enable_gqa: bool = False,
) -> Any:
    """Take the arguments of `torch.nn.attention.varlen.varlen_attn` of torch 2.12; queries and keys are the same."""
    left, right = window_size
    if right != 0:
        raise ValueError("only causal attention is offered")
    return attention(query, key, value, ends, longest, scale=scale, window=None if left < 0 else left + 1)


@functools.cache
def _function() -> Any:
    """Return the autograd function; made on first use, because torch is imported inside functions only."""
    import torch

    class Varlen(torch.autograd.Function):  # type: ignore[misc]
        """Forward and backward of `aten::_flash_attention_forward`, which keeps the row's log-sum-exp between them."""

        @staticmethod
        def forward(
            ctx: Any, query: Any, key: Any, value: Any, ends: Any, longest: int, scale: float | None, window: int | None
        ) -> Any:
            sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
            out, sums, seed, offset, _ = torch.ops.aten._flash_attention_forward(
                query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scale, **sides
            )
            ctx.save_for_backward(query, key, value, ends, out, sums, seed, offset)
            ctx.rest = longest, scale, sides
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            query, key, value, ends, out, sums, seed, offset = ctx.saved_tensors
            longest, scale, sides = ctx.rest
            found = torch.ops.aten._flash_attention_backward(
                gradients[0].contiguous(), query, key, value, out, sums, ends, ends, longest, longest, 0.0, True,
                seed, offset, scale=scale, **sides,
            )  # fmt: skip
            return (*found, None, None, None, None)

    return Varlen
