"""The trained weights one by one, complete or block by block: read from the base, merged, laid out as ggml has them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from toolkit import kernels
from toolkit.export.adapter import merge
from toolkit.export.adapter.deltas import LoraDelta
from toolkit.export.planned_tensor import PlannedTensor, streams, whole_size
from toolkit.formats.checkpoint import BLOCK, Floats, Rows
from toolkit.formats.tensor_values import read_rows, read_tensor
from toolkit.model import families

Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Source:
    """Where a tensor's rows come from: `read(start, end)` gives (end - start, columns), merged and laid out.

    They are float32, or uint16 for bfloat16 that nothing changes. `step` rows make a block; `whole` says that all
    values are in memory.
    """

    rows: int
    step: int
    whole: bool
    read: Callable[[int, int], Rows]


def trained(tensor: PlannedTensor, pool: ThreadPoolExecutor) -> Floats:
    """Read one stored weight, whole, and merge into it what the adapter trained: float32, in the checkpoint's order.

    Raises ToolkitError for damaged files and for values that are not finite.
    """
    assert tensor.stored is not None
    values = read_tensor(tensor.stored, pool)
    if tensor.change:
        merge.merge(values, tensor.change, tensor.layout.source, pool)
    return values


def source(tensor: PlannedTensor, computed: Floats | None, pool: ThreadPoolExecutor) -> Source:
    """Open a tensor for reading in blocks; `computed` are the values of one that is in no file.

    A tensor that `streams` refuses is read, merged and laid out here, in one piece. Errors are those of `trained`, from
    here or from `read`.
    """
    columns, first = tensor.shape[-1], tensor.layout.first
    if not streams(tensor):
        stored = trained(tensor, pool) if computed is None else computed
        values = families.to_ggml_layout(stored[first : first + tensor.shape[0]], tensor.layout)
        matrix = values.reshape(-1, columns)
        return Source(len(matrix), max(1, BLOCK // columns), True, lambda start, end: matrix[start:end])
    heads = tensor.layout.heads
    unit = tensor.shape[0] // heads if heads else 1  # the rows of a head stay together
    step = max(1, BLOCK // columns // unit) * unit
    change = tensor.change
    pair = (read_tensor(change.a, pool), read_tensor(change.b, pool)) if isinstance(change, LoraDelta) else None

    def read(start: int, end: int) -> Rows:
        assert tensor.stored is not None
        rows = read_rows(tensor.stored, first + start, first + end)
        if pair is not None and isinstance(change, LoraDelta):
            merged = kernels.widened(rows)
            with np.errstate(over="ignore", invalid="ignore"):  # reported better below
                merge.add_rows(merged, pair[1][first + start : first + end], pair[0], change.scale)
            merge.check_finite(merged, tensor.layout.source)
            rows = merged
        return families.to_ggml_layout(rows, replace(tensor.layout, heads=(end - start) // unit)) if heads else rows

    return Source(tensor.shape[0], step, False, read)


def ahead(
    tensors: Sequence[PlannedTensor],
    prepare: Callable[[PlannedTensor], Prepared],
    size: Callable[[PlannedTensor], int] = whole_size,
) -> Iterator[tuple[PlannedTensor, Prepared]]:
    """Yield each tensor with its prepared value, in order, while a thread prepares the next ones.

    The sum of `size` in memory never exceeds the largest tensor alone, so looking ahead costs no memory: drop
    the prepared value before asking for the next.
    """
    sizes = [size(tensor) for tensor in tensors]
    most = max(sizes, default=0)
    waiting: deque[Future[Prepared]] = deque()
    held = started = 0
    with ThreadPoolExecutor(1) as thread:
        try:
            for index, tensor in enumerate(tensors):
                while started < len(tensors) and (started == index or held + sizes[started] <= most):
                    waiting.append(thread.submit(prepare, tensors[started]))
                    held += sizes[started]
                    started += 1
                yield tensor, waiting.popleft().result()
                held -= sizes[index]
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
