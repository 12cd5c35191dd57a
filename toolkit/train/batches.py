"""Which records each step sees, and how they are divided into micro-batches.

Both are pure functions of the settings and the records' lengths. A step sees as many records as the settings say,
whatever the memory plan and the number of GPUs. A resumed run continues with the records that would have come next.
"""

import random

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
PARTS = 32  # of the held-out records at least, if there are that many: enough for a standard error


def step_records(count: int, per_step: int, steps: int, seed: int) -> Rows:
    """Return the indices of the records that each step sees, shape (steps, per_step).

    Every epoch has a new order. A step may reach from one epoch into the next, so no step is short.
    """
    epochs = -(-steps * per_step // count)
    order = np.concatenate([_epoch(epoch, count, seed) for epoch in range(epochs)])
    return order[: steps * per_step].reshape(steps, per_step)


def _epoch(epoch: int, count: int, seed: int) -> Rows:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return np.array(order, np.int64)


def pack_steps(steps: Rows, lengths: Rows, micro_batches: int) -> Rows:
    """Reorder the records inside each step, so that its micro-batches have equal counts and about equal tokens.

    `steps` is as `step_records` returns it, `lengths` are the tokens of every record. Returns (steps, micro-batches,
    records). Several processes take the micro-batches in turn, as accelerate's sampler deals them. The longest records
    are dealt first, one to each micro-batch, and every other round goes backwards.
    """
    count, per_step = steps.shape
    longest_first = np.argsort(-lengths[steps], axis=1, kind="stable")
    dealt = np.take_along_axis(steps, longest_first, axis=1).reshape(count, per_step // micro_batches, micro_batches)
    dealt[:, 1::2] = dealt[:, 1::2, ::-1].copy()
    return dealt.transpose(0, 2, 1)


def held_out_batch(records: int, micro_batch: int) -> tuple[int, int]:
    """Return the records of a held-out batch, and the batches of a part; losses are compared part by part.

    The size of a part does not depend on memory, so the losses of two plans can be compared. There are about 32 parts,
    or one per record.
    """
    part = max(1, records // PARTS)
    size = max(size for size in range(1, min(part, micro_batch) + 1) if part % size == 0)
    return size, part // size


def held_out_parts(sums: list[list[float]], records: int, micro_batch: int) -> list[list[float]]:
    """Add up the summed loss and tokens of held-out batches, in order, by part; copies at the end are dropped."""
    _, together = held_out_batch(records, micro_batch)
    real = [one for one in sums if one[1]]
    cuts = range(0, len(real), together)
    return [[sum(column) for column in zip(*real[cut : cut + together], strict=True)] for cut in cuts]


def largest(laid: Rows, lengths: Rows, *, padded: bool = False) -> int:
    """Return the tokens of the largest micro-batch; if `padded`, each record takes as many as its longest one."""
    tokens = lengths[laid]
    return int((tokens.max(axis=2) * tokens.shape[2] if padded else tokens.sum(axis=2)).max())
