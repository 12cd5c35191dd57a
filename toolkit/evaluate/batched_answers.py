"""Greedy answers in transformers, many at once: each step reads the weights once for all that have not ended yet."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

AHEAD = 64  # positions that a layer's cache grows by: it would be copied at each token
TOKENS_CPU, TOKENS_GPU = 2048, 16_384  # of prompts in one pass, padding included
GROUPED = "toolkit_grouped"  # the name of our attention within transformers


@dataclass
class _Row:
    """One prompt in work: its number, and the ids of its answer so far."""

    number: int
    answer: list[int] = field(default_factory=list)


def answer_together(
    model: Any,
    prompts: Sequence[list[int]],
    tokens: int,
    ends: tuple[int, ...],
    over: Callable[[int, list[int]], bool],
    around: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[int, list[int], bool]]:
    """Answer all prompts in one batch; yield (number of the prompt, ids of its answer, ended) as each ends.

    `model` is a causal model of transformers or PEFT, which computes within `around()`. An answer ends at one of
    `ends`, which is left out, at `tokens` tokens, or where `over` says so of its number and ids. What has ended
    leaves the batch.
    """
    import torch

    device, width = next(model.parameters()).device, max(map(len, prompts))
    ids = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, prompt in enumerate(prompts):
        ids[place, width - len(prompt) :] = torch.tensor(prompt)
        mask[place, width - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    rows = [_Row(number) for number in range(len(prompts))]
    with torch.inference_mode(), around():
        kept, following = _read(model, ids, mask)
    while rows:
        done: list[tuple[_Row, bool]] = []
        # Nothing is yielded within `around`: the caller may ask another system of the same model meanwhile.
        with torch.inference_mode(), around():
            while not done:
                for row, token in zip(rows, following.tolist(), strict=True):
                    ended = token in ends
                    if not ended:
                        row.answer.append(token)
                    if ended or len(row.answer) >= tokens or over(row.number, row.answer):
                        done.append((row, ended))
                if done:
                    gone = {row.number for row, _ in done}
                    left = [place for place, row in enumerate(rows) if row.number not in gone]
                    rows = [rows[place] for place in left]
                    if not rows:
                        break
                    chosen = torch.tensor(left, device=device)
                    kept.reorder_cache(chosen)  # not batch_select_indices: layers that keep a state lack it
                    mask, following = mask[chosen], following[chosen]
                mask = torch.cat([mask, mask.new_ones((len(rows), 1))], dim=1)
                following = _next(model, following[:, None], mask, mask.sum(-1, keepdim=True) - 1, kept)
        yield from ((row.number, row.answer, ended) for row, ended in done)


def _read(model: Any, ids: Any, mask: Any) -> tuple[Any, Any]:
    """Read prompts, padded on the left; return their cache, and the likeliest token after each."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    places = (mask.cumsum(-1) - 1).clamp(min=0)  # padding does not count
    kept = DynamicCache(config=model.config)
    rows, width = ids.shape
    step = width
    if all(type(layer) is DynamicLayer for layer in kept.layers):  # one with a state reads a padded prompt at once
        step = max(1, (TOKENS_CPU if ids.device.type == "cpu" else TOKENS_GPU) // rows)
    kept.layers = [_growing_layer()() if type(layer) is DynamicLayer else layer for layer in kept.layers]
    for start in range(0, width, step):
        end = min(start + step, width)
        following = _next(model, ids[:, start:end], mask[:, :end], places[:, start:end], kept)
    return kept, following


def _next(model: Any, ids: Any, mask: Any, places: Any, kept: Any) -> Any:
    """Return the likeliest token after each row."""
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=kept,
        use_cache=True,
        logits_to_keep=1,
    )
    return out.logits[:, -1].argmax(-1)


@cache
def _growing_layer() -> type[Any]:
    """Return a class of cache layers with room for tokens to come, where transformers' own copies all at each token."""
    from transformers.cache_utils import DynamicLayer

    class GrowingLayer(DynamicLayer):  # type: ignore[misc]
        """`keys` and `values`, (rows, heads, tokens, width), are the beginnings of larger tensors."""

        keys: Any
        values: Any
        room: tuple[Any, Any] | None = None

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
            """Append keys and values; return all."""
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            start = self.get_seq_length()
            end = start + key_states.shape[2]
            new = (key_states, value_states)
            room = self.room
            if room is None or room[0].shape[2] < end:
                room = self._larger(self.keys, new[0], start, end), self._larger(self.values, new[1], start, end)
            for whole, part in zip(room, new, strict=True):
                whole[:, :, start:end] = part
            self.room = room
            self.keys, self.values = room[0][:, :, :end], room[1][:, :, :end]
            return self.keys, self.values

        @staticmethod
        def _larger(old: Any, new: Any, start: int, end: int) -> Any:
            rows, heads, _, width = new.shape
            found = new.new_empty((rows, heads, end + AHEAD, width))
            if start:
                found[:, :, :start] = old
            return found

        def reorder_cache(self, beam_idx: Any) -> None:
            """Keep the chosen rows."""
            super().reorder_cache(beam_idx)
            self.room = None

    return GrowingLayer


def use_grouped_attention(model: Any) -> None:
    """Let a model that attends by torch's own function do so without copying the cache for each head of a group.

    transformers repeats keys and values for all the heads that share them, at every token. Here the heads of a group
    are rows of one product, where each sequence has one new token. The result is the same but for rounding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if model.config.get_text_config()._attn_implementation == "sdpa":
        AttentionInterface.register(GROUPED, _attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        model.set_attn_implementation(GROUPED)


def _attention(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> tuple[Any, None]:
    """Attend as transformers' `sdpa` does; query (rows, heads, tokens, width), result (rows, tokens, heads, width)."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, length, width = query.shape
    shared = key.shape[1]
    per_head = attention_mask is not None and attention_mask.shape[1] != 1
    if length != 1 or heads == shared or per_head or options.get("position_bias") is not None:
        found: tuple[Any, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    out = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(rows, shared, heads // shared, width),
        key,
        value,
        attn_mask=attention_mask,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
    )
    return out.reshape(rows, 1, heads, value.shape[-1]), None
