"""Run the Triton kernels of each type over rows on a device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit.kernels.gpu import search
from toolkit.kernels.gpu.levels import blocks_8, levels_6, levels_k
from toolkit.kernels.gpu.scales import scales_6, scales_k
from toolkit.kernels.gpu.search import GIVEN, IMPORTANCE, SPREAD, SQUARE

Tensor = Any  # torch is not typed here

INTERPRETED = triton.knobs.runtime.interpret
LANES = 4096 if INTERPRETED else 128
BLOCKS = 1024 if INTERPRETED else 16


@dataclass(frozen=True)
class Offset:
    """ggml's search for scale and offset: sub-blocks of `size` weights, levels up to `most`, steps from `first` on."""

    size: int
    most: int
    first: float
    step: float
    steps: int
    weighing: Any
    absolute: bool = False


@dataclass(frozen=True)
class Signed:
    """ggml's search for a signed scale: sub-blocks of `size` weights, levels from -`most` on."""

    size: int
    most: int
    weighing: Any


# Without an importance matrix, with one: the constants of quantize_row_*_ref and quantize_row_*_impl.
SEARCHES: dict[Type, tuple[Offset | Signed, Offset | Signed]] = {
    Type.Q4_K: (Offset(32, 15, -1.0, 0.1, 21, SPREAD), Offset(32, 15, -0.9, 0.05, 37, IMPORTANCE)),
    Type.Q5_K: (Offset(32, 31, -0.5, 0.1, 16, SPREAD), Offset(32, 31, -0.9, 0.05, 37, IMPORTANCE)),
    Type.Q6_K: (Signed(16, 32, SQUARE), Signed(16, 32, GIVEN)),
}


def quantize_rows(kind: Type, rows: Tensor, importance: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the bytes of some rows, and for each block whether ggml must do it again.

    `rows` is (rows, columns) in float32 or bfloat16, contiguous; `importance` (columns,) in float32, on the same
    device. Out come (blocks, bytes) in uint8 and (blocks,) in int8. At most 2²⁹ weights.
    """
    size, stored = GGML_QUANT_SIZES[kind]
    count = rows.numel() // size
    out = torch.empty((count, stored), dtype=torch.uint8, device=rows.device)
    flags = torch.empty(count, dtype=torch.int8, device=rows.device)
    if count:
        WRITERS[kind](kind, rows, importance, out, flags)
    return out, flags


def _is_bf16(rows: Tensor) -> bool:
    return bool(rows.dtype == torch.bfloat16)


def _plain(rows: Tensor) -> Tensor:
    return rows.view(torch.int16) if _is_bf16(rows) else rows


def _launch(kernel: Any, count: int, per_program: int, *arguments: Any, **constants: Any) -> None:
    # Contracting a · b + c into one rounding would change bytes.
    kernel[(-(-count // per_program),)](*arguments, **constants, enable_fp_fusion=False)


@cache
def _factors(recipe: Offset | Signed, device: Any) -> Tensor:
    """Return the numerators of the inverse scale that the search tries, computed in float32 as ggml does."""
    most = np.float32(recipe.most)
    values: list[np.float32]
    if isinstance(recipe, Offset):
        steps = [np.float32(recipe.first) + np.float32(recipe.step) * np.float32(i) for i in range(recipe.steps)]
        values = [most, *(step + most for step in steps)]
    else:
        values = [-most, *(-(most + np.float32(0.1) * np.float32(i)) for i in range(-9, 10) if i)]
    table: npt.NDArray[np.float32] = np.array(values, np.float32)
    return torch.from_numpy(table).to(device)


@cache
def _fit_factors(most: int, device: Any) -> Tensor:
    """Return the numerators that ggml's fit of a block's scales tries besides `most`."""
    values = [np.float32(0.1) * np.float32(i) + np.float32(most) for i in range(-4, 5) if i]
    return torch.from_numpy(np.array(values, np.float32)).to(device)


def _searched(
    kind: Type, rows: Tensor, importance: Tensor | None, group: int, factor: float = 1.0
) -> tuple[Tensor, ...]:
    """Return what the search finds for each sub-block: scale, (offset,) sum of weights, inverse scale, (minimum,) flag.

    With an importance matrix, `group` weights share a mean square, which is scaled by `factor`.
    """
    recipe = SEARCHES[kind][importance is not None]
    count = rows.numel() // recipe.size
    words = rows.view(torch.int64)
    bf16 = _is_bf16(rows)

    def empty(number: int) -> list[Tensor]:
        return [torch.empty(count, dtype=torch.float32, device=rows.device) for _ in range(number)]

    squares = torch.empty(rows.numel() // group, dtype=torch.float32, device=rows.device)
    if importance is None:
        importance = squares  # not read
    elif recipe.weighing is IMPORTANCE:
        _launch(
            search.sums_of_squares, len(squares), LANES, words, squares, len(squares), factor, float(group),
            WORDS=group // (4 if bf16 else 2), BF16=bf16, LANES=LANES,
        )  # fmt: skip
    results = empty(5 if isinstance(recipe, Offset) else 3)
    flags = torch.empty(count, dtype=torch.int8, device=rows.device)
    places = (count, rows.shape[-1] // recipe.size, group // recipe.size)
    constants: dict[str, Any] = {"N": recipe.size, "MOST": recipe.most, "KIND": recipe.weighing.value, "BF16": bf16}
    kernel = search.search_signed
    if isinstance(recipe, Offset):
        kernel = search.search_offset
        constants |= {"STEPS": recipe.steps, "ABSOLUTE": recipe.absolute}
    else:
        constants |= {"STEPS": 18}
    factors = _factors(recipe, rows.device)
    _launch(
        kernel, count, LANES, words, importance, squares, factors, *results, flags, *places, **constants, LANES=LANES
    )
    return (*results, flags)


def _write_k(kind: Type, rows: Tensor, importance: Tensor | None, out: Tensor, flags: Tensor) -> None:
    scales, lows, sums, chosen, chosen_lows, found = _searched(kind, rows, importance, 256, 2.0)
    bits = 4 if kind == Type.Q4_K else 5
    _launch(
        scales_k, len(out), LANES, out, scales, lows, sums, _fit_factors(63, rows.device), found, flags,
        len(out), SIZE=out.shape[1], FITTED=importance is not None, LANES=LANES,
    )  # fmt: skip
    _launch(
        levels_k, len(out), BLOCKS, out, _plain(rows), chosen, chosen_lows, flags, len(out),
        BITS=bits, BF16=_is_bf16(rows), BLOCKS=BLOCKS,
    )  # fmt: skip


def _write_6(kind: Type, rows: Tensor, importance: Tensor | None, out: Tensor, flags: Tensor) -> None:
    scales, _, chosen, found = _searched(kind, rows, importance, 256)
    _launch(scales_6, len(out), LANES, out, scales, chosen, found, flags, len(out), LANES=LANES)
    numbers = (chosen, flags, len(out))
    _launch(levels_6, len(out), BLOCKS, out, _plain(rows), *numbers, BF16=_is_bf16(rows), BLOCKS=BLOCKS)


def _write_8(kind: Type, rows: Tensor, importance: Tensor | None, out: Tensor, flags: Tensor) -> None:
    _launch(blocks_8, len(out), BLOCKS, out, _plain(rows), flags, len(out), BF16=_is_bf16(rows), BLOCKS=BLOCKS)


WRITERS: dict[Type, Callable[[Type, Tensor, Tensor | None, Tensor, Tensor], None]] = {
    Type.Q4_K: _write_k,
    Type.Q5_K: _write_k,
    Type.Q6_K: _write_6,
    Type.Q8_0: _write_8,
}
