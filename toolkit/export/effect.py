"""Whether an adapter changes anything: modules without weights, and LoRA whose product is zero or too small."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from toolkit.core import console, hardware
from toolkit.export.adapter.deltas import LoraDelta
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.formats.tensor_values import read_tensor

LEAST = 1e-7  # F16 rounds a weight of 0.001 by up to 5e-7


def say_effect(tensors: Sequence[PlannedTensor], gap: str, *, base_here: bool = True) -> None:
    """Warn of modules without weights, and of LoRA that changes nothing: a factor is zero, or the product too small.

    DoRA whose product is zero changes nothing either if its magnitudes are the norms of the base's rows; that is looked
    for where the base's weights are on this machine (`base_here`).
    """
    if gap:
        console.warn(gap)
    one_each = {tensor.layout.source: tensor for tensor in tensors}.values()  # two tensors may be parts of one
    changed = [(tensor, tensor.change) for tensor in one_each if isinstance(tensor.change, LoraDelta)]
    if not changed:
        return
    with ThreadPoolExecutor(hardware.cores()) as pool:
        sizes = [(tensor, delta, _largest(delta, pool)) for tensor, delta in changed]
        idle = [(delta, size) for tensor, delta, size in sizes if size < LEAST
                and (delta.magnitude is None or (base_here and _is_its_norm(tensor.stored, delta, pool)))]  # fmt: skip
    others = any(tensor.replaced or not isinstance(tensor.change, LoraDelta | None) for tensor in tensors)
    if not idle:
        return
    small = sum(size > 0 for _, size in idle)
    how = "are all zeros" if not small else "are too small to change a weight" if small == len(idle) else (
        "are all zeros, or too small to change a weight")  # fmt: skip
    what = f"{len(idle)} of {len(changed)} LoRA products {how}"
    if len(idle) == len(changed) and not others:
        console.warn(f"this adapter changes nothing: {what}; it was not trained, or was saved before training")
    else:
        console.warn(f"{what}: these modules stay unchanged, the first is `{idle[0][0].b.name}`")


def _largest(delta: LoraDelta, pool: ThreadPoolExecutor) -> float:
    """Return a bound on each number in scale * B @ A: the longest row of B times the longest column of A."""
    a, b = (read_tensor(factor, pool).astype(np.float64) for factor in (delta.a, delta.b))
    if not a.any() or not b.any():
        return 0.0
    return float(abs(delta.scale) * np.sqrt(np.square(b).sum(axis=1).max() * np.square(a).sum(axis=0).max()))


def _is_its_norm(stored: TensorInfo | None, delta: LoraDelta, pool: ThreadPoolExecutor) -> bool:
    """Tell whether DoRA's magnitudes are the norms that training began with, within the rounding of bfloat16."""
    if stored is None or delta.magnitude is None:
        return False
    weight = read_tensor(stored, pool)
    norms = np.sqrt(np.square(weight).sum(axis=0 if delta.embedding else 1, dtype=np.float64))
    return bool(np.allclose(read_tensor(delta.magnitude, pool), norms, rtol=2**-8, atol=0))
