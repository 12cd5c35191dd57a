"""Rows in e4m3, each with its own scale: on CUDA by one Triton kernel, elsewhere by torch, with the same numbers.

e4m3 has 3 bits of mantissa, 448 as its largest number, NaN, and no infinity. The scale of a row is its largest
magnitude / 448 in float32. A row of zeros stays zeros; one with NaN or infinity has a scale that is not finite.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
LEAST = 2.0**-100  # a row's largest magnitude counts as this at least, so that its inverse is finite
BLOCK, WARPS = 4096, 8  # of a program, which takes one row


class Fp8Rows(NamedTuple):
    """Quantized rows: `values` (rows, width) in e4m3, contiguous, and `scales` (rows, 1) in float32."""

    values: Tensor
    scales: Tensor

    def restored(self) -> Tensor:
        """Return the numbers that are stored, in float32."""
        return self.values.float() * self.scales


def quantize_rows(*parts: Tensor) -> Fp8Rows:
    """Quantize the rows of one to three matrices that stand side by side, with one scale for the whole row.

    The parts have the same number of rows; each row lies in one piece. Any number of rows, any width.
    """
    if parts[0].device.type != "cuda":
        return _by_torch(torch.cat(parts, dim=1))
    parts = tuple(part if part.stride(1) == 1 else part.contiguous() for part in parts)
    widths = [part.shape[1] for part in parts]
    rows = _empty(parts[0], len(parts[0]), sum(widths))
    missing = 3 - len(parts)
    sources = [*parts, *[parts[0]] * missing]
    strides = [part.stride(0) for part in sources]
    _launch("rows_kernel", max(widths), rows, [*sources, *rows, *strides], [*widths, *[0] * missing])
    return rows


def swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Fp8Rows]:
    """Return silu(gate) · up, (rows, width), in their dtype, and its rows quantized."""
    if gate.device.type != "cuda":
        hidden = (torch.nn.functional.silu(gate.float()) * up.float()).to(gate.dtype)
        return hidden, _by_torch(hidden)
    gate, up = gate.contiguous(), up.contiguous()
    hidden, rows = torch.empty_like(gate), _empty(gate, *gate.shape)
    _launch("swiglu_kernel", gate.shape[1], rows, [gate, up, hidden, *rows], [gate.shape[1]])
    return hidden, rows


def swiglu_backward(gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor, Fp8Rows]:
    """Return silu(gate) · up, the gradients of gate and of up, and the quantized rows of both side by side."""
    if gate.device.type != "cuda":
        e, g, d = gate.float(), up.float(), gradient.float()
        s = torch.sigmoid(e)
        made = (e * s * g, d * g * s * (1 + e * (1 - s)), d * e * s)
        hidden, to_gate, to_up = (one.to(gate.dtype) for one in made)
        return hidden, to_gate, to_up, _by_torch(torch.cat([to_gate, to_up], dim=1))
    gradient, gate, up = gradient.contiguous(), gate.contiguous(), up.contiguous()
    hidden, to_gate, to_up = (torch.empty_like(gate) for _ in range(3))
    rows = _empty(gate, len(gate), 2 * gate.shape[1])
    tensors = [gradient, gate, up, hidden, to_gate, to_up, *rows]
    _launch("swiglu_backward_kernel", gate.shape[1], rows, tensors, [gate.shape[1]])
    return hidden, to_gate, to_up, rows


def _by_torch(matrix: Tensor) -> Fp8Rows:
    numbers = matrix.float()
    largest = numbers.abs().amax(dim=1, keepdim=True).clamp(min=LEAST)  # both keep NaN
    limit = torch.full_like(largest, LARGEST)  # by a plain number CUDA would multiply with its rounded inverse
    return Fp8Rows((numbers * (limit / largest)).to(E4M3), largest / limit)


def _empty(like: Tensor, count: int, width: int) -> Fp8Rows:
    values = torch.empty((count, width), dtype=E4M3, device=like.device)
    return Fp8Rows(values, torch.empty((count, 1), dtype=torch.float32, device=like.device))


def _launch(name: str, widest: int, rows: Fp8Rows, arguments: list[Any], widths: list[int]) -> None:
    from toolkit.train.fp8 import kernels

    if not len(rows.values):
        return
    block = min(BLOCK, 1 << (widest - 1).bit_length())
    warps = max(1, min(WARPS, block // 256))
    with torch.cuda.device(rows.values.device):
        getattr(kernels, name)[(len(rows.values),)](*arguments, *widths, block, LEAST, num_warps=warps)
