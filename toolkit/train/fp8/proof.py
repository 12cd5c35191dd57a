"""The proof that this GPU multiplies in FP8 as it should, before anything is trained with it."""

from collections.abc import Iterable

import torch

from toolkit.train.fp8 import rows
from toolkit.train.fp8.weights import make_group, product

# Of a product of normally distributed numbers against bf16, by norms. Rounding both operands to 3 bits gives 3.7 %.
TOLERANCE = 0.05
TOKENS = (1, 13, 272)  # any number of rows must do


def prove(sizes: Iterable[tuple[int, int]], device: torch.device | str = "cuda") -> str:
    """Return why products of weights of these sizes (inputs, outputs) must not be computed in FP8; empty if they may.

    Both directions are compared with bf16, for few and many tokens, as is SwiGLU with its gradient. A row of zeros must
    stay zeros, and one with NaN must give NaN, and no other row.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

    for inputs, outputs in sorted(set(sizes)):
        weight = normal(outputs, inputs) * 0.02
        group = make_group([weight])
        for count in TOKENS:
            x, dy = normal(count, inputs), normal(count, outputs)
            both = [
                ("forward", product(rows.quantize_rows(x), group.members[0].rows), x @ weight.t()),
                ("backward", product(rows.quantize_rows(dy), group.columns), dy @ weight),
            ]
            for name, found, wanted in both:
                far = distance(found, wanted)
                if not far <= TOLERANCE:
                    size = f"{inputs:,} × {outputs:,}, {count} tokens"
                    return f"the {name} product of {size} is {far:.1%} from bf16's, more than {TOLERANCE:.0%}"
        x[0], x[1, 0] = 0, float("nan")
        found = product(rows.quantize_rows(x), group.members[0].rows)
        if found[0].any() or not found[1].isnan().all() or not found[2:].isfinite().all():
            return "a row of zeros, or one with NaN, is not what it should be after a product"
    return _prove_swiglu(*(normal(16, 4112) for _ in range(3)))


def _prove_swiglu(gate: torch.Tensor, up: torch.Tensor, gradient: torch.Tensor) -> str:
    exact = [one.float().requires_grad_() for one in (gate, up)]
    wanted = torch.nn.functional.silu(exact[0]) * exact[1]
    wanted.backward(gradient.float())
    hidden, quantized = rows.swiglu(gate, up)
    again, to_gate, to_up, side = rows.swiglu_backward(gradient, gate, up)
    joint = torch.cat([one.grad for one in exact if one.grad is not None], dim=1)
    pairs = [(hidden, wanted, 0.01), (again, wanted, 0.01), (torch.cat([to_gate, to_up], dim=1), joint, 0.01)]
    pairs += [(quantized.restored(), wanted, TOLERANCE), (side.restored(), joint, TOLERANCE)]
    far = max(distance(found, right) / most for found, right, most in pairs)
    return "" if far <= 1 else "SwiGLU or its gradient is not what torch computes"


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of what is wanted."""
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm())
