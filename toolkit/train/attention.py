"""Attention that stays inside each record of a packed row, for the models of transformers, on any device.

Each record is one call of torch's own attention, so nothing is computed across records and no mask is built. On a CUDA
card one kernel does all records at once (`varlen.py`), unless the model has soft-capping (Gemma-2).
"""

from typing import Any

from toolkit.packed_attention import LOOP, VARLEN
from toolkit.train import varlen

NAME = "toolkit_records"


def register() -> str:
    """Make the attention known to transformers, and return its name for `attn_implementation`."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
    return NAME


def kernel(config: Any, device: Any, dtype: Any) -> str:
    """Return the name of the kernel that a model of this transformers config takes on a device."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    plain = getattr(config, "attn_logit_softcapping", None) is None
    return VARLEN if plain and varlen.supported(device, dtype, width) else LOOP


def attend(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    lengths: list[int] | None = None,
    cu_seq_lens_q: Any = None,
    **_: Any,
) -> tuple[Any, None]:
    """Attend causally inside each record; shapes (1, heads, tokens, width) → (1, tokens, heads, width).

    `lengths` are the records' tokens, in order, and `cu_seq_lens_q` where they begin and end; without them each row is
    one record, and a query shorter than its keys stands at their end (generation with a cache). Signature:
    transformers' attention interface.
    """
    import torch

    groups = query.shape[1] // key.shape[1]
    plain = attention_mask is None and softcap is None and not dropout
    if lengths and cu_seq_lens_q is not None and plain and varlen.supported(query.device, query.dtype, query.shape[-1]):
        longest = max(lengths)
        window = sliding_window if sliding_window is not None and longest > sliding_window else None
        queries, keys, values = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
        found = varlen.attention(queries, keys, values, cu_seq_lens_q, longest, scale=scaling, window=window)
        return found[None], None
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    if lengths is None or len(lengths) == 1:
        pieces = [(query, key, value)]
    else:
        split = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
        pieces = list(zip(*split, strict=True))
    outputs = []
    for queries, keys, values in pieces:
        rows, columns = queries.shape[2], keys.shape[2]
        windowed = sliding_window is not None and columns > sliding_window
        if softcap is None and not windowed and attention_mask is None and rows in (1, columns):
            outputs.append(
                torch.nn.functional.scaled_dot_product_attention(
                    queries, keys, values, dropout_p=dropout, scale=scaling, is_causal=rows > 1
                )
            )
        else:
            bias = _bias(rows, columns, sliding_window, queries)
            if attention_mask is not None:
                bias = bias + attention_mask[..., -columns:]
            outputs.append(_plain(queries, keys, values, bias, dropout, scaling, softcap))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _bias(rows: int, columns: int, window: int | None, like: Any) -> Any:
    """Return what is added to the scores, (rows, columns): 0 where a query may look, minus infinity elsewhere."""
    import torch

    query = torch.arange(columns - rows, columns, device=like.device)[:, None]
    key = torch.arange(columns, device=like.device)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros((rows, columns), dtype=torch.float32, device=like.device).masked_fill(hidden, float("-inf"))


def _plain(
    query: Any, key: Any, value: Any, bias: Any, dropout: float, scaling: float | None, cap: float | None
) -> Any:
    """Compute attention from its definition, with Gemma-2's soft-capping of the scores where there is one."""
    import torch

    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ key.transpose(2, 3) * scale
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    weights = torch.softmax(scores.float() + bias, dim=-1).to(query.dtype)
    return torch.nn.functional.dropout(weights, p=dropout) @ value
