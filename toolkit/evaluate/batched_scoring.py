"""How likely given continuations are, in transformers: what comes before them in padded batches, then they themselves.

Before continuations that follow the same ids, those are evaluated once. Only logits that are needed are computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from toolkit.evaluate.scoring import Pair
from toolkit.evaluate.systems import Score

TOKENS_CPU, TOKENS_GPU = 1024, 16_384  # in a batch, padding included
POSITIONS = 256  # whose logits are in memory at once: 0.3 GB in float64 for a vocabulary of 128,000
AHEAD = 256  # pairs that are sorted by length together, so that batches have little padding


@dataclass
class _Item:
    """The ids before some continuations of the same item, and for each its place among all pairs."""

    before: list[int]
    continuations: list[tuple[int, list[int]]]

    @property
    def longest(self) -> int:
        """The tokens of its longest continuation."""
        return max(len(after) for _, after in self.continuations)


def transformers_scores(
    model: Any, pairs: Sequence[Pair], around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Iterator[Score]:
    """Score continuations in a loaded causal model of transformers or PEFT, in order; pairs are (ids before it, its).

    The model computes within `around()`, such as PEFT's `disable_adapter`.
    """
    import torch

    budget = TOKENS_CPU if next(model.parameters()).device.type == "cpu" else TOKENS_GPU
    for start in range(0, len(pairs), AHEAD):
        group = list(enumerate(pairs[start : start + AHEAD]))
        items = [
            _Item(list(before), [(place, after) for place, (_, after) in found])
            for before, found in groupby(group, key=lambda one: one[1][0])
        ]
        scores: dict[int, Score] = {}
        for batch in _batches(items, budget):
            with torch.inference_mode(), around():
                scores.update(_of_batch(model, batch))
        yield from (scores[place] for place, _ in group)


def _batches(items: list[_Item], budget: int) -> Iterator[list[_Item]]:
    """Divide items, the longest first, into batches of at most `budget` padded tokens, or of one item."""
    batch: list[_Item] = []
    size = before = after = 0
    for item in sorted(items, key=lambda item: -len(item.before) - item.longest):
        rows = len(item.continuations)
        before, after = max(before, len(item.before)), max(after, item.longest)
        if batch and (size + rows) * (before + after) > budget:
            yield batch
            batch, size, before, after = [], 0, len(item.before), item.longest
        batch.append(item)
        size += rows
    if batch:
        yield batch


def _of_batch(model: Any, batch: list[_Item]) -> Iterator[tuple[int, Score]]:
    """Yield the score of each continuation of a batch, with its place."""
    import torch

    device = next(model.parameters()).device
    width = max(len(item.before) for item in batch)
    ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(batch):
        ids[row, width - len(item.before) :] = torch.tensor(item.before)
        mask[row, width - len(item.before) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    out = model(input_ids=ids, attention_mask=mask, position_ids=_places(mask), use_cache=True, logits_to_keep=1)
    rows = [(row, place, after) for row, item in enumerate(batch) for place, after in item.continuations]
    sums = {place: 0.0 for _, place, _ in rows}
    greedy = {place: True for _, place, _ in rows}

    def add(logits: Any, wanted: list[tuple[int, int, int, int]]) -> None:
        """Add the scores of (row, column, place, token) by logits of shape (rows, columns, vocabulary)."""
        if not wanted:
            return
        row, column, _, token = torch.tensor(wanted, device=device).T
        exact = logits.double()
        logprobs = exact[row, column, token] - exact.logsumexp(-1)[row, column]
        likeliest = logits.argmax(-1)[row, column] == token
        for (_, _, place, _), logprob, best in zip(wanted, logprobs.tolist(), likeliest.tolist(), strict=True):
            sums[place] += logprob
            greedy[place] &= best

    add(out.logits, [(row, 0, place, after[0]) for row, place, after in rows if after])
    cache, start = out.past_key_values, 0
    while longer := [one for one in rows if len(one[2]) > start + 1]:  # those that have ended leave the batch
        if start == 0 or len(longer) < len(rows):
            chosen = torch.tensor([row for row, _, _ in longer], device=device)
            cache.reorder_cache(chosen)  # not batch_select_indices: layers that keep a state lack it
            mask = mask[chosen]
            rows = [(row, place, after) for row, (_, place, after) in enumerate(longer)]
        end = min(start + max(1, POSITIONS // len(rows)), max(len(after) for _, _, after in rows) - 1)
        ids = torch.zeros((len(rows), end - start), dtype=torch.long)
        there = torch.zeros_like(ids)
        wanted = []
        for row, place, after in rows:
            seen = after[start : min(end, len(after) - 1)]
            ids[row, : len(seen)] = torch.tensor(seen)
            there[row, : len(seen)] = 1
            wanted += [(row, index, place, after[start + index + 1]) for index in range(len(seen))]
        mask = torch.cat([mask, there.to(device)], dim=1)
        out = model(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=_places(mask)[:, -(end - start) :],
            past_key_values=cache,
            use_cache=True,
        )
        add(out.logits, wanted)
        start = end
    yield from ((place, Score(sums[place], greedy[place])) for place in sums)


def _places(mask: Any) -> Any:
    """Return the position of each token: padding does not count."""
    return (mask.cumsum(-1) - 1).clamp(min=0)
