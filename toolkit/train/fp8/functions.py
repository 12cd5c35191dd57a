"""Frozen FP8 weights with their LoRA pairs: forward, and the gradients of input and adapter.

The frozen products are in FP8. LoRA's are in the dtype of the input, as they are without FP8; what shares an input is
multiplied with it at once: the first matrices of query, key and value are one thin product.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.train.fp8.rows import quantize_rows, swiglu, swiglu_backward
from toolkit.train.fp8.weights import Group, product


class Lora(NamedTuple):
    """A LoRA pair (rank, inputs) and (outputs, rank), and its scale; what it adds is scale · x Aᵀ Bᵀ."""

    a: Tensor
    b: Tensor
    scale: float


class Pairs(NamedTuple):
    """LoRA pairs behind one input, in the input's dtype: the first matrices in one, and the second ones times scale."""

    a: Tensor
    b: list[Tensor]
    scales: Sequence[float]
    ranks: list[int]

    def add_to(self, outputs: Sequence[Tensor], thin: Tensor) -> None:
        """Add each pair's share to its output, given x Aᵀ of all."""
        for out, part, b in zip(outputs, thin.split(self.ranks, dim=1), self.b, strict=True):
            out.addmm_(part, b.t())

    def backward(self, x: Tensor, thin: Tensor, gradients: Sequence[Tensor], dx: Tensor | None) -> list[Tensor]:
        """Add the pairs' share to the input's gradient, and return the gradients of A and B, pair by pair."""
        through = torch.cat([dy @ b for dy, b in zip(gradients, self.b, strict=True)], dim=1)
        if dx is not None:
            dx.addmm_(through, self.a)
        for_a = (through.t() @ x).split(self.ranks)
        parts = zip(gradients, thin.split(self.ranks, dim=1), self.scales, strict=True)
        for_b = [(dy.t() @ part) * scale for dy, part, scale in parts]
        return [one for pair in zip(for_a, for_b, strict=True) for one in pair]


def pairs_of(matrices: Sequence[Tensor], scales: Sequence[float], dtype: torch.dtype) -> Pairs:
    """Return the pairs A, B, A, B, … in a dtype."""
    first, second = matrices[0::2], matrices[1::2]
    joint = torch.cat(list(first)) if len(first) > 1 else first[0]
    scaled = [(b * scale).to(dtype) for b, scale in zip(second, scales, strict=True)]
    return Pairs(joint.to(dtype), scaled, scales, [len(a) for a in first])


class Linears(torch.autograd.Function):  # type: ignore[misc]
    """Weights that share an input, with or without LoRA: x (rows, inputs) → the outputs of each, (rows, outputs)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, scales: Sequence[float], *matrices: Tensor) -> tuple[Tensor, ...]:
        """Multiply x, and keep it for LoRA's gradients."""
        rows = quantize_rows(x)
        outputs = tuple(product(rows, weight.rows, x.dtype) for weight in group.members)
        ctx.group, ctx.pairs = group, None
        if matrices:
            ctx.pairs = pairs_of(matrices, scales, x.dtype)
            thin = x @ ctx.pairs.a.t()
            ctx.pairs.add_to(outputs, thin)
            ctx.save_for_backward(x, thin)
        return outputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x and of LoRA's matrices."""
        dx = (
            product(quantize_rows(*gradients), ctx.group.columns, gradients[0].dtype)
            if ctx.needs_input_grad[0]
            else None
        )
        if ctx.pairs is None:
            return dx, None, None
        x, thin = ctx.saved_tensors
        return dx, None, None, *ctx.pairs.backward(x, thin, gradients, dx)


class SwiGlu(torch.autograd.Function):  # type: ignore[misc]
    """down(silu(gate(x)) · up(x)), each with LoRA: x (rows, width) → (rows, width). Gate and up are one group."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, entry: Group, down: Group, scales: Sequence[float], *matrices: Tensor) -> Tensor:
        """Multiply x; gate and up are kept, and what follows from them is computed again."""
        rows = quantize_rows(x)
        gate, up = (product(rows, weight.rows, x.dtype) for weight in entry.members)
        del rows
        ctx.first, ctx.last = pairs_of(matrices[:4], scales[:2], x.dtype), pairs_of(matrices[4:], scales[2:], x.dtype)
        thin = x @ ctx.first.a.t()
        ctx.first.add_to((gate, up), thin)
        hidden, rows = swiglu(gate, up)
        out = product(rows, down.members[0].rows, x.dtype)
        thin_down = hidden @ ctx.last.a.t()
        ctx.last.add_to((out,), thin_down)
        ctx.groups = entry, down
        ctx.save_for_backward(x, gate, up, thin, thin_down)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x and of LoRA's matrices."""
        x, gate, up, thin, thin_down = ctx.saved_tensors
        entry, down = ctx.groups
        inner = product(quantize_rows(dy), down.columns, dy.dtype)
        through = dy @ ctx.last.b[0]
        inner.addmm_(through, ctx.last.a)
        hidden, to_gate, to_up, rows = swiglu_backward(inner, gate, up)
        del inner
        for_down = [through.t() @ hidden, (dy.t() @ thin_down) * ctx.last.scales[0]]
        del hidden
        dx = product(rows, entry.columns, dy.dtype) if ctx.needs_input_grad[0] else None
        del rows
        return dx, None, None, None, *ctx.first.backward(x, thin, (to_gate, to_up), dx), *for_down


def linears(x: Tensor, group: Group, pairs: Sequence[Lora] = ()) -> tuple[Tensor, ...]:
    """Return what each weight of the group makes of x (…, inputs), with LoRA where pairs are given, one for each."""
    x = _computed(x)
    matrices = [matrix for pair in pairs for matrix in pair[:2]]
    outputs = Linears.apply(x.reshape(-1, x.shape[-1]), group, [pair.scale for pair in pairs], *matrices)
    return tuple(out.view(*x.shape[:-1], -1) for out in outputs)


def swiglu_layer(x: Tensor, entry: Group, down: Group, pairs: Sequence[Lora]) -> Tensor:
    """Return a whole SwiGLU layer of x (…, width); the pairs are those of gate, up and down."""
    x = _computed(x)
    matrices = [matrix for pair in pairs for matrix in pair[:2]]
    scales = [pair.scale for pair in pairs]
    found: Tensor = SwiGlu.apply(x.reshape(-1, x.shape[-1]), entry, down, scales, *matrices)
    return found.view(x.shape)


def _computed(x: Tensor) -> Tensor:
    """Return x in the dtype of autocast where it is on, as a linear layer would take it."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
