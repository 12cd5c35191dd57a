"""Apply an adapter's change to one weight of the base, in place and in float32, slab by slab.

Formulas: LoRA W + s B A (Hu et al. 2021); DoRA m (W + s B A) / ‖W + s B A‖, the norm of each row of a linear layer
and of each column of an embedding (Liu et al. 2024, https://arxiv.org/abs/2402.09353, as PEFT computes it).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from toolkit.core.errors import ToolkitError
from toolkit.export.adapter.deltas import Change, LoraDelta, Rows
from toolkit.formats.checkpoint import BLOCK, Floats
from toolkit.formats.tensor_values import read_tensor


def merge(weight: Floats, change: Change, name: str, pool: ThreadPoolExecutor) -> None:
    """Turn a weight of the base into the trained one, in place; B @ A is never complete in memory.

    Raises ToolkitError if the result is not finite.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # reported better below
        if isinstance(change, Rows):
            weight[list(change.indices)] = read_tensor(change.values, pool)
        elif isinstance(change, LoraDelta):
            _add_product(weight, change, pool)
            if change.magnitude is not None:
                _scale_to(weight, read_tensor(change.magnitude, pool), change.embedding, name)
        else:
            weight += read_tensor(change.bias, pool) * np.float32(change.scale)
    for slab in _slabs(weight):
        check_finite(weight[slab], name)


def check_finite(weight: Floats, name: str) -> None:
    """Raise ToolkitError if a merged weight is not finite."""
    if not np.isfinite(weight).all():
        raise _diverged(name)


def _slabs(weight: Floats) -> Iterator[slice]:
    rows = max(1, BLOCK // weight[0].size)
    for start in range(0, len(weight), rows):
        yield slice(start, start + rows)


def _add_product(weight: Floats, delta: LoraDelta, pool: ThreadPoolExecutor) -> None:
    a, b = read_tensor(delta.a, pool), read_tensor(delta.b, pool)
    left, right = (a.T, b.T) if delta.embedding else (b, a)
    for slab in _slabs(weight):
        add_rows(weight[slab], left[slab], right, delta.scale)


def add_rows(weight: Floats, left: Floats, right: Floats, scale: float) -> None:
    """Add scale * left @ right to some rows of a weight, in place and in float32."""
    product = left @ right
    product *= np.float32(scale)
    weight += product


def _scale_to(weight: Floats, magnitude: Floats, columns: bool, name: str) -> None:
    """Scale each row, or each column, to its magnitude."""
    sums = np.zeros(len(magnitude), np.float64)
    for slab in _slabs(weight):
        squares = np.square(weight[slab])
        if columns:
            sums += squares.sum(axis=0, dtype=np.float64)
        else:
            sums[slab] = squares.sum(axis=1, dtype=np.float64)
    factors = (magnitude / np.sqrt(sums)).astype(np.float32)
    if not (np.isfinite(factors).all() and np.isfinite(sums).all()):
        raise _diverged(name)
    for slab in _slabs(weight):
        weight[slab] *= factors if columns else factors[slab, None]


def _diverged(name: str) -> ToolkitError:
    return ToolkitError(
        f"the merged weight `{name}` holds NaN or infinite values",
        hint="the adapter diverged: train again with a lower learning rate",
    )
