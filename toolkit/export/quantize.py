"""Turn float32 rows into a ggml type, slab by slab in threads: `toolkit.kernels` says what does it, and proves it.

What libggml asserts aborts the whole interpreter, so everything is checked here before the call.
"""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.errors import ToolkitError
from toolkit.export.checkpoint import SLAB, Floats
from toolkit.export.types import KNOWN, block_size, stored_size

Chunk = npt.NDArray[np.uint8]
F16_MAX = 65504.0
NEED_IMPORTANCE = (Type.IQ2_XXS, Type.IQ2_XS)  # of the types here, those of ggml_quantize_requires_imatrix


def threads() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def routine(kind: Type) -> kernels.Routine:
    """Return what quantizes a type here, and its name for the manifest."""
    return kernels.routine(int(kind))


def quantized(
    values: Floats, kind: Type, name: str, pool: ThreadPoolExecutor, importance: Floats | None = None
) -> Iterator[Chunk]:
    """Yield a tensor's bytes in a ggml type, slab by slab in order, while the pool works on the slabs that follow.

    `values` is C-contiguous float32, finite; `importance`, one value a column, says how much an error there costs.
    Raises ToolkitError for weights beyond float16's range, in which F16 keeps the weights and the quantized types their
    scales.
    """
    columns = values.shape[-1]
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    usable = importance.shape == (columns,) if importance is not None else kind not in NEED_IMPORTANCE
    contiguous = values.dtype == np.float32 and values.flags.c_contiguous
    if not usable or not contiguous or columns % block_size(kind) or kind not in KNOWN:
        raise ToolkitError(f"tensor `{name}` ({values.dtype}, {values.shape}) cannot be made {kind.name}")
    if importance is not None and not (np.isfinite(importance) & (importance >= 0)).all():
        raise ToolkitError(
            f"the importance matrix holds values for tensor `{name}` that are negative or not finite",
            hint="it is damaged, or belongs to another model: compute it again",
        )
    matrix = values.reshape(-1, columns)
    routine(kind)  # proves it, and says what there is to say, before the threads start
    workers = threads()
    rows = max(1, min(SLAB // columns, -(-len(matrix) // (2 * workers))))
    waiting: deque[Future[Chunk]] = deque()
    for start in range(0, len(matrix), rows):
        waiting.append(pool.submit(slab, matrix[start : start + rows], kind, name, importance))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def slab(rows: Floats, kind: Type, name: str, importance: Floats | None) -> Chunk:
    """Return some rows of a tensor in a ggml type; `quantized` says what they and `importance` must be."""
    if kind == Type.F32:
        return rows.reshape(-1).view(np.uint8)
    if kind != Type.BF16 and max(rows.max(), -rows.min()) > F16_MAX:
        raise ToolkitError(
            f"tensor `{name}` holds weights beyond ±{F16_MAX:.0f}, more than {kind.name} can store",
            hint="export F32 or BF16 instead: their range is wider",
        )
    out = np.empty(stored_size(kind, rows.shape), np.uint8)
    routine(kind).run(rows, out, importance)
    return out
