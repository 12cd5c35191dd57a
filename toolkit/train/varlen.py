"""One attention kernel for all records of a packed row, on CUDA: torch's own flash attention of variable lengths.

Unsloth uses this kernel on its own from torch 2.12 on; for torch 2.11 the same kernel is offered to it here. Models of
transformers use it as their attention implementation. Without it torch computes the whole row under a mask.
"""

import functools
import itertools
from typing import Any

from toolkit.core import console
from toolkit.model.attention_kernels import CAPABILITY, FLASH_ATTN, MASK, VARLEN, XFORMERS

NAME = "toolkit_varlen"
WIDEST = 256  # dimensions of a head


def attention(
    query: Any, key: Any, value: Any, ends: Any, longest: int, *, scale: float | None = None, window: int | None = None
) -> Any:
    """Attend causally inside each record of a packed row; (tokens, heads, width) → the same shape, f16 or bf16.

    Key and value may have fewer heads, each for a group of the query's. `ends` is int32 on the device, (records + 1,),
    0 first and the number of tokens last; `longest` is the longest record's tokens; `window` how many keys back a query
    looks, itself included. Differentiable. Raises what torch raises if the GPU or the dtype has no such kernel.
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
    """Give Unsloth the kernel if this torch's own interface lacks what it needs, and name what it will use.

    Unsloth 2026.10.9 looks for it in `unsloth.utils.attention_dispatch`, once, at import, and prefers it to xformers. A
    later version that looks elsewhere keeps its own choice, and the name says so.
    """
    import torch
    from unsloth.utils import attention_dispatch as dispatch

    if not hasattr(dispatch, "_TORCH_VARLEN_ATTN") or not hasattr(dispatch, "select_attention_backend"):
        return "Unsloth's own choice"
    fits = supported(torch.cuda.current_device(), torch.bfloat16, 128)
    if fits and dispatch._TORCH_VARLEN_ATTN is None:
        dispatch._TORCH_VARLEN_ATTN = _as_torch_does
        dispatch._LEAN_VARLEN = False  # its shorter way asks torch for what 2.11 does not have
        dispatch._NATIVE_BEATS_XFORMERS = True
    taken = dispatch.select_attention_backend(use_varlen=True)
    return {"flash_varlen": FLASH_ATTN, "xformers": XFORMERS}.get(taken, VARLEN if fits else MASK)


def choose(config: Any, device: Any, dtype: Any) -> str:
    """Return the name of the kernel that a model of this transformers config takes on a device."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = getattr(config, "attn_logit_softcapping", None) is None
    return VARLEN if plain and supported(device, dtype, width) else MASK


def register_kernel() -> str:
    """Make the kernel known to transformers, and return its name for `attn_implementation`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def add_lengths(module: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Tell a model's attention where the records of a packed row begin; a hook that runs before its forward pass.

    Every position 0 begins a record. The GPU is asked once per pass; Python would wait for it in every layer.
    """
    import torch

    positions = named.get("position_ids")
    if positions is None or named.get("labels") is None:
        return arguments, named
    starts = (positions[0] == 0).nonzero()[:, 0].tolist()
    ends = [*starts, positions.shape[1]]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32, device=positions.device)
    longest = max(end - start for start, end in itertools.pairwise(ends))
    return arguments, {**named, "cu_seq_lens_q": cu_seqlens, "max_length_q": longest}


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Any = None,
    max_length_q: int = 0,
    **others: Any,
) -> tuple[Any, None]:
    """Attend causally inside each record; shapes (1, heads, tokens, width) → (1, tokens, heads, width).

    Without `cu_seq_lens_q` (generation with a cache) torch's own attention is used. Signature: transformers' attention
    interface.
    """
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        found: tuple[Any, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return found
    window = sliding_window if sliding_window is not None and max_length_q > sliding_window else None
    queries, keys, values = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    out = attention(queries, keys, values, cu_seq_lens_q, max_length_q, scale=scaling, window=window)
    return out[None], None


def announce(kernel: str) -> None:
    """Say which kernel attends to packed records; the slow one with a warning."""
    (console.warn if kernel == MASK else console.info)(f"attention of packed records: {kernel}")


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
            splits = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
            out, sums, seed, offset, _ = torch.ops.aten._flash_attention_forward(
                query, key, value, ends, ends, longest, longest, 0.0, True, False, scale=scale, **splits
            )
            ctx.save_for_backward(query, key, value, ends, out, sums, seed, offset)
            ctx.rest = longest, scale, splits
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            query, key, value, ends, out, sums, seed, offset = ctx.saved_tensors
            longest, scale, splits = ctx.rest
            found = torch.ops.aten._flash_attention_backward(
                gradients[0].contiguous(), query, key, value, out, sums, ends, ends, longest, longest, 0.0, True,
                seed, offset, scale=scale, **splits,
            )  # fmt: skip
            return (*found, None, None, None, None)

    return Varlen
