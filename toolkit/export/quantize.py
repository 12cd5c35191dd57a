"""Turn float32 rows into a ggml type, slab by slab in threads; `toolkit.kernels` chooses and tests what does it.

A failed assertion in libggml aborts the whole interpreter, so everything is checked here before the call.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type
from threadpoolctl import threadpool_limits

from toolkit import kernels
from toolkit.core import hardware, streams
from toolkit.core.errors import ToolkitError
from toolkit.export.gpu_quantizer import GpuQuantizer
from toolkit.formats.checkpoint import SLAB, Floats, Rows
from toolkit.formats.ggml_types import KNOWN, block_size, stored_size

Chunk = npt.NDArray[np.uint8]
F16_MAX = 65504.0
NEED_IMPORTANCE = (Type.IQ2_XXS, Type.IQ2_XS)  # of the types here, those of ggml_quantize_requires_imatrix


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Yield threads for the export, one per core; BLAS, which would start as many again for each, works in one."""
    spoken: dict[str, Any] = {"initializer": streams.adopt, "initargs": (streams.state(),)}
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(hardware.cores(), **spoken) as made:
        yield made


def routine(kind: Type) -> kernels.Routine:
    """Return what quantizes a type on this CPU, and its name for the manifest."""
    return kernels.routine(int(kind))


def quantized(
    values: Floats, kind: Type, name: str, pool: ThreadPoolExecutor, importance: Floats | None = None
) -> Iterator[Chunk]:
    """Yield a tensor's bytes in a ggml type, slab by slab in order, while the pool works on the slabs that follow.

    `values` is C-contiguous float32, finite; `importance`, one value per column, says how much an error there costs.
    Raises ToolkitError for weights beyond float16's range, in which F16 keeps the weights and the quantized types their
    scales.
    """
    columns = values.shape[-1]
    if values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ToolkitError(f"tensor `{name}` ({values.dtype}, {values.shape}) cannot be converted to {kind.name}")
    importance = ready(kind, columns, name, importance)
    matrix = values.reshape(-1, columns)
    workers = hardware.cores()
    rows = max(1, min(SLAB // columns, -(-len(matrix) // (2 * workers))))
    waiting: deque[Future[Chunk]] = deque()
    for start in range(0, len(matrix), rows):
        waiting.append(pool.submit(slab, matrix[start : start + rows], kind, name, importance))
        if len(waiting) > 2 * workers:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def ready(kind: Type, columns: int, name: str, importance: Floats | None) -> Floats | None:
    """Check that rows can be made a type, before threads start, and return the importance as its routine wants it.

    Raises ToolkitError for rows that do not divide into blocks and for importance that is absent or damaged.
    """
    if importance is not None:
        importance = np.ascontiguousarray(importance, np.float32)
    usable = importance.shape == (columns,) if importance is not None else kind not in NEED_IMPORTANCE
    if not usable or columns % block_size(kind) or kind not in KNOWN:
        raise ToolkitError(f"tensor `{name}` with rows of {columns} values cannot be converted to {kind.name}")
    if importance is not None and not (np.isfinite(importance) & (importance >= 0)).all():
        raise ToolkitError(
            f"the importance matrix holds values for tensor `{name}` that are negative or not finite",
            hint="it is damaged, or belongs to another model: compute it again",
        )
    kernels.warn_of_libggml(int(kind))  # tests it too
    return importance


def largest(rows: Rows) -> float:
    """Return the largest magnitude in some rows, NaN if one is NaN."""
    if rows.dtype == np.uint16:
        return float(np.uint32(int(np.bitwise_and(rows, 0x7FFF).max()) << 16).view(np.float32))
    return float(max(rows.max(), -rows.min()))


def slab(rows: Rows, kind: Type, name: str, importance: Floats | None, gpu: GpuQuantizer | None = None) -> Chunk:
    """Return some rows of a tensor, float32 or bfloat16 as uint16, in a ggml type, C-contiguous and finite all of them.

    `ready` has checked the type and `importance`; the rows that `GPU` takes are done there. Raises ToolkitError for
    weights beyond float16's range.
    """
    if kind == Type.F32:
        return kernels.widened(rows).reshape(-1).view(np.uint8)
    if kind == Type.BF16 and rows.dtype == np.uint16:
        return rows.reshape(-1).view(np.uint8)
    if kind != Type.BF16 and largest(rows) > F16_MAX:
        raise ToolkitError(
            f"tensor `{name}` holds weights beyond ±{F16_MAX:.0f}, more than {kind.name} can store",
            hint="export F32 or BF16 instead: their range is wider",
        )
    out = np.empty(stored_size(kind, rows.shape), np.uint8)
    if gpu is None or not gpu.quantize(kind, rows, out, importance):
        routine(kind).run(rows, out, importance)
    return out
