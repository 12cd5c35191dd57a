"""The values of a checkpoint's tensors: complete as float32, or some rows of a matrix.

Nothing is mapped into memory, so a file that shrinks while it is read gives an error, not a SIGBUS.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.formats import bnb_4bit
from toolkit.formats.checkpoint import SLAB, Floats, Rows, check_readable, stored_bytes
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import AGAIN, ITEM_SIZES, Scales, TensorInfo


def read_tensor(tensor: TensorInfo, pool: ThreadPoolExecutor) -> Floats:
    """Return one tensor as float32 in its own shape, read in slabs by the pool's threads.

    Raises ToolkitError if the file ends early or a value is NaN or infinite (file and tensor named).
    """
    check_readable(tensor)
    values = np.empty(prod(tensor.shape), np.float32)
    slab, scales = SLAB, None
    if tensor.scales:
        scales = _block_scales(tensor.scales, pool)
        slab = -(-SLAB // bnb_4bit.BLOCK_SIZES[-1]) * bnb_4bit.BLOCK_SIZES[-1]  # whole blocks, whole bytes
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        starts = range(0, values.size, slab)
        read_slab = partial(_read_slab, tensor, descriptor, scales)
        list(pool.map(lambda start: read_slab(start, values[start : start + slab]), starts))
    finally:
        os.close(descriptor)
    return values.reshape(tensor.shape)


def read_rows(tensor: TensorInfo, start: int, end: int) -> Rows:
    """Return some rows of a matrix: bfloat16 as its bits (uint16), everything else as float32; 4 bits are not for this.

    Raises ToolkitError if the file ends early or a value is NaN or infinite (file and tensor named).
    """
    columns = prod(tensor.shape[1:])
    size = ITEM_SIZES[tensor.dtype]
    rows = np.empty((end - start, columns), {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}[tensor.dtype])
    descriptor = os.open(tensor.path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):  # the disk reads ahead for later blocks
            later = tensor.offset + end * columns * size + 7 * rows.nbytes
            os.posix_fadvise(descriptor, later, rows.nbytes, os.POSIX_FADV_WILLNEED)
        _fill(tensor, descriptor, start * columns * size, rows)
    finally:
        os.close(descriptor)
    if tensor.dtype == "BF16":
        if rows.size and np.bitwise_and(rows, 0x7FFF).max() >= 0x7F80:
            raise _not_finite(tensor)
        return rows
    if not np.isfinite(rows).all():
        raise _not_finite(tensor)
    return rows.astype(np.float32, copy=False)


def _not_finite(tensor: TensorInfo) -> ToolkitError:
    return ToolkitError(
        f"tensor `{visible(tensor.name)}` in `{tensor.path}` holds NaN or infinite values",
        hint="these weights are damaged: copy the model again, or train again with a lower learning rate",
    )


def _block_scales(parts: Scales, pool: ThreadPoolExecutor) -> Floats:
    if parts.nested is None:
        return bnb_4bit.block_scales(parts.state, read_tensor(parts.absmax, pool).reshape(-1), None)
    absmax, code = (read_tensor(part, pool).reshape(-1) for part in parts.nested)
    return bnb_4bit.block_scales(parts.state, np.frombuffer(stored_bytes(parts.absmax), np.uint8), (absmax, code))


def _read_slab(tensor: TensorInfo, descriptor: int, scales: Floats | None, start: int, out: Floats) -> None:
    if tensor.scales and scales is not None:
        packed = np.empty(-(-out.size // 2), np.uint8)
        _fill(tensor, descriptor, start // 2, packed)
        out[:] = bnb_4bit.dequantize(tensor.scales.state, packed, scales, start, out.size)
    elif tensor.dtype == "F32":
        _fill(tensor, descriptor, 4 * start, out)
    else:
        raw = np.empty(out.size, np.uint16)
        _fill(tensor, descriptor, 2 * start, raw)
        if tensor.dtype == "BF16":
            np.left_shift(raw, 16, out=out.view(np.uint32), dtype=np.uint32)
        else:
            out[:] = raw.view(np.float16)
    if not np.isfinite(out).all():
        raise _not_finite(tensor)


def _fill(tensor: TensorInfo, descriptor: int, offset: int, out: npt.NDArray[Any]) -> None:
    """Read the tensor's bytes from `offset` on until `out` is full."""
    view = out.data.cast("B")
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], tensor.offset + offset + done)
        if count == 0:
            raise ToolkitError(f"`{tensor.path}` ends in the middle of tensor `{visible(tensor.name)}`", hint=AGAIN)
        done += count
