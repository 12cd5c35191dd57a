"""Frozen weights in e4m3, with rowwise scales, and their products in FP8.

A product needs both operands quantized along the axis that is summed. So a weight (outputs, inputs) is kept twice: its
rows for y = x Wᵀ, and its columns, as rows of the transposed copy, for dx = dy W. Both take 2 bytes a weight, as bf16.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit.train.fp8.rows import Fp8Rows, quantize_rows

ALIGNED = 16  # both sizes of a weight must be a multiple of this, for torch._scaled_mm


def product(left: Fp8Rows, right: Fp8Rows, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Return left · rightᵀ, (rows of left, rows of right), summed in the tensor cores; on a CPU in float32."""
    if left.values.device.type != "cuda":
        return (left.restored() @ right.restored().t()).to(dtype)
    count = len(left.values)
    left = _filled_up(left)
    # Rowwise scales give bf16 alone. The sum is kept in fewer bits (`use_fast_accum`): the error of the operands'
    # 3 bits is larger, and without it the product is slower.
    scales = {"scale_a": left.scales, "scale_b": right.scales.t()}
    found = torch._scaled_mm(left.values, right.values.t(), **scales, out_dtype=torch.bfloat16, use_fast_accum=True)
    return found[:count].to(dtype)


def _filled_up(rows: Fp8Rows) -> Fp8Rows:
    """Add rows of zeros up to a multiple of ALIGNED; a pass in training has one already."""
    missing = -len(rows.values) % ALIGNED
    if not missing:
        return rows
    values = torch.nn.functional.pad(rows.values.view(torch.uint8), (0, 0, 0, missing)).view(rows.values.dtype)
    return Fp8Rows(values, torch.nn.functional.pad(rows.scales, (0, 0, 0, missing), value=1.0))


class Fp8Weight:
    """One frozen weight (outputs, inputs): its rows and its columns.

    Unsloth takes it for the quantization state of a packed weight: `matmul` and `dequantize` are what its kernels call
    on such a state, with the packed bytes or their transposed view.
    """

    _unsloth_packed_weight_state = True

    def __init__(self, rows: Fp8Rows, columns: Fp8Rows, dtype: torch.dtype) -> None:
        self.rows, self.columns, self.dtype = rows, columns, dtype

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, inputs = self.rows.values.shape
        return outputs, inputs

    def matmul(self, x: Tensor, weight: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Return x Wᵀ, or x W if `weight` is the transposed view; x is (…, width) in any float type."""
        right = self.columns if is_transposed(weight) else self.rows
        found = product(quantize_rows(x.reshape(-1, x.shape[-1])), right, x.dtype).view(*x.shape[:-1], -1)
        return found if out is None else out.copy_(found.view(out.shape))

    def dequantize(self, weight: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Return the weight, or its transposed view if `weight` is one, as the forward pass multiplies it."""
        found = self.rows.restored().to(dtype or self.dtype)
        return found.t() if is_transposed(weight) else found


class Group:
    """Weights that multiply the same input; their columns stand side by side, and one product gives its gradient."""

    def __init__(self, members: Sequence[Fp8Weight], columns: Fp8Rows) -> None:
        self.members, self.columns = tuple(members), columns


def make_group(weights: Sequence[Tensor]) -> Group:
    """Quantize frozen weights (outputs, inputs) of the same input, in both ways."""
    joint = quantize_rows(torch.cat(list(weights)).t().contiguous())
    members, start = [], 0
    for weight in weights:
        end = start + len(weight)
        columns = Fp8Rows(joint.values[:, start:end], joint.scales)
        members.append(Fp8Weight(quantize_rows(weight.detach().contiguous()), columns, weight.dtype))
        start = end
    return Group(members, joint)


def is_transposed(weight: Any) -> bool:
    """Tell whether this is the transposed view of a weight's bytes."""
    return weight is not None and weight.dim() == 2 and weight.stride(0) == 1 and weight.stride(1) != 1


def fits(inputs: int, outputs: int) -> bool:
    """Tell whether a weight's sizes are ones that FP8 products take."""
    return inputs % ALIGNED == 0 and outputs % ALIGNED == 0
