"""Which records a step sees, and how they are laid into forward passes: a pure function of settings, data and step.

A step sees batch_size × accumulation records, whatever the memory plan and however many devices there are; so an
interrupted run goes on with the very records that would have come, and packing does not change what is learned.
"""

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.train.examples import IGNORED, Example

# Tokens of a forward pass on a card are a multiple of this: rows of 16-bit numbers that do not begin at 16 bytes leave
# cuBLAS its slow kernels for the adapter's products, 3 to 6 % of a step on an H100; and Triton compiles another kernel
# for sizes that 16 does not divide.
ALIGNED = 16


@dataclass(frozen=True)
class Batch:
    """One forward pass: tensors of shape (1, tokens) with the records one behind the other, or (records, width) padded.

    `learned` are the places, over all rows but for their last tokens, whose next token is learned, in the machine's
    memory: a card that looked for them would have to be waited for. `lengths` are the records' tokens, `rows` their row
    numbers. A packed row may end in a record of filling, which has a length and no row number.
    """

    input_ids: Any
    labels: Any
    position_ids: Any
    learned: npt.NDArray[np.int64]
    lengths: list[int]
    rows: list[int]
    padded: bool = False


def of_step(step: int, per_step: int, count: int, seed: int) -> list[int]:
    """Return the indices of the records that step number `step` (from 0) sees.

    The records come in a new order every pass; a step may reach over from one pass into the next, and no record is left
    out.
    """
    found: list[int] = []
    for place in range(step * per_step, (step + 1) * per_step):
        epoch, index = divmod(place, count)
        found.append(_order(epoch, count, seed)[index])
    return found


@functools.lru_cache(maxsize=4)
def _order(epoch: int, count: int, seed: int) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def lay_out(lengths: Sequence[int], tokens: int, records: int, shards: int = 1) -> list[list[int]]:
    """Divide records into as few forward passes as hold at most `tokens` and `records` each, as evenly as can be.

    Returns lists of indices into `lengths`; their number is a multiple of `shards`, and pass number i belongs to shard
    i mod shards. A record longer than `tokens` has a pass of its own. Where there are fewer records than shards, the
    lists at the end are empty. The longest records are laid first, each to where least stands (Graham's LPT rule).
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    count = max(1, -(-sum(lengths) // max(1, tokens)), -(-len(lengths) // max(1, records)))
    count = -(-count // shards) * shards
    while True:
        passes: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for index in order:
            open_ones = [place for place in range(count) if len(passes[place]) < records]
            place = min(open_ones, key=lambda place: (filled[place], place))
            passes[place].append(index)
            filled[place] += lengths[index]
        if all(load <= tokens or len(members) == 1 for load, members in zip(filled, passes, strict=True)):
            return passes
        count += shards


def largest_pass(
    lengths: Sequence[int], per_step: int, steps: int, seed: int, tokens: int, records: int, shards: int = 1
) -> int:
    """Return the tokens of the largest forward pass in the first steps; 200 of them show it well enough."""
    largest = 0
    for step in range(min(steps, 200)):
        chosen = [lengths[place] for place in of_step(step, per_step, len(lengths), seed)]
        passes = lay_out(chosen, tokens, records, shards)
        largest = max(largest, *(sum(chosen[place] for place in members) for members in passes))
    return largest


def collate(examples: Sequence[Example], device: Any, *, padded: bool = False, multiple: int = 1) -> Batch:
    """Lay records one behind the other in one row, positions from 0 in each; or `padded`, one below the other.

    The label of each record's first token is ignored: nothing inside the record predicts it. A row is filled up to a
    multiple of `multiple` tokens, of which nothing is learned either.
    """
    lengths = [len(example.input_ids) for example in examples]
    used = max(lengths) if padded else sum(lengths)
    width = -(-used // multiple) * multiple
    shape = (len(examples) if padded else 1, width)
    values = np.zeros((3, *shape), np.int64)
    ids, labels, positions = values
    labels[:] = IGNORED
    start = 0
    for number, example in enumerate(examples):
        place = (number, slice(0, lengths[number])) if padded else (0, slice(start, start + lengths[number]))
        ids[place] = example.input_ids
        labels[place] = [IGNORED, *example.labels[1:]]
        positions[place] = np.arange(lengths[number])
        start += lengths[number]
    if not padded and width > used:
        positions[0, used:] = np.arange(width - used)
        lengths.append(width - used)
    input_ids, targets, position_ids = sent(values, device)
    return Batch(
        input_ids=input_ids,
        labels=targets,
        position_ids=position_ids,
        learned=np.flatnonzero(labels[:, 1:] != IGNORED),
        lengths=lengths,
        rows=[example.row for example in examples],
        padded=padded,
    )


def sent(values: npt.NDArray[Any], device: Any) -> Any:
    """Return values as a tensor on a device; a card gets them without Python waiting for what it still computes."""
    import torch

    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor


def silent(example: Example) -> Example:
    """Return a record of which nothing is learned: a shard without a record of its own computes this one."""
    return Example(example.input_ids, [IGNORED] * len(example.labels), example.row, example.truncated)


def ends(lengths: Sequence[int], device: Any) -> Any:
    """Return where records begin and end in a packed row: int32, shape (records + 1,), from 0 on."""
    return sent(np.cumsum([0, *lengths], dtype=np.int32), device)
