"""Rows in e4m3: what torch computes on a CPU, and that Triton's kernels compute the same, in its interpreter."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.support.places import REPOSITORY
from toolkit.train.fp8 import rows


@pytest.mark.parametrize("width", [16, 80, 5000])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 3e4])
def test_each_number_is_within_a_sixteenth_whatever_the_rows_size(width: int, size: float) -> None:
    """Half a unit in the last of 3 bits, as long as it is at most 2¹⁴ below the row's largest."""
    torch.manual_seed(0)
    matrix = torch.randn(7, width) * size
    matrix[3] *= 1e-6  # each row has its own scale
    found = rows.quantize_rows(matrix)
    assert found.values.dtype == torch.float8_e4m3fn and found.values.shape == (7, width)
    assert found.scales.dtype == torch.float32 and found.scales.shape == (7, 1)
    far = (found.restored() - matrix).abs()
    largest = matrix.abs().amax(dim=1, keepdim=True)
    assert bool((far <= torch.maximum(matrix.abs() / 16, largest / 2**14)).all())
    assert torch.equal(found.values.float().abs().amax(dim=1), torch.full((7,), rows.LARGEST))


def test_zeros_stay_and_what_is_not_finite_spoils_its_own_row_alone() -> None:
    matrix = torch.randn(5, 32)
    matrix[0] = 0
    matrix[1, 3], matrix[2, 5], matrix[3, 7] = float("nan"), float("inf"), float("-inf")
    found = rows.quantize_rows(matrix)
    assert not found.restored()[0].any()
    assert found.scales.isfinite().flatten().tolist() == [True, False, False, False, True]
    products = found.restored() @ torch.ones(32, 4)
    assert products.isfinite().all(dim=1).tolist() == [True, False, False, False, True]


def test_parts_side_by_side_have_one_scale_for_a_row() -> None:
    parts = [torch.randn(6, width) for width in (32, 16, 48)]
    found, joined = rows.quantize_rows(*parts), rows.quantize_rows(torch.cat(parts, dim=1))
    assert torch.equal(found.values.view(torch.uint8), joined.values.view(torch.uint8))
    assert torch.equal(found.scales, joined.scales)


def test_swiglu_and_its_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(9, 48, requires_grad=True) for _ in range(2))
    wanted, gradient = torch.nn.functional.silu(gate) * up, torch.randn(9, 48)
    wanted.backward(gradient)
    hidden, quantized = rows.swiglu(gate.detach(), up.detach())
    again, to_gate, to_up, both = rows.swiglu_backward(gradient, gate.detach(), up.detach())
    for found, right in ((hidden, wanted), (again, wanted), (to_gate, gate.grad), (to_up, up.grad)):
        torch.testing.assert_close(found, right)
    assert torch.equal(quantized.scales, rows.quantize_rows(hidden).scales)
    assert torch.equal(both.restored(), rows.quantize_rows(to_gate, to_up).restored())


INTERPRET = """
import json, sys
import torch
from toolkit.train.fp8 import kernels, rows
def launch(name, widest, out, arguments, widths):
    block = min(64, 1 << (widest - 1).bit_length())
    getattr(kernels, name)[(len(out.values),)](*arguments, *widths, block, rows.LEAST)
def compare(found, wanted):
    ours, right = (one.values.view(torch.uint8).int() for one in (found, wanted))
    sign = (ours & 128 == right & 128) | (ours & 127 == 0) | (right & 127 == 0)
    ours, right = ours & 127, right & 127
    near = (ours - right).abs() <= 1  # the interpreter rounds a half away from zero,
    near |= (ours & 7 == 0) & ((ours + 8 - right).abs() <= 1)  # and loses a carry into the exponent
    return bool(torch.equal(found.scales, wanted.scales) and (near & sign).all())
torch.manual_seed(0)
said = {}
for widths in ([16], [96], [80, 16, 16], [32, 64], [208]):
    parts = [torch.randn(6, 2 * width).bfloat16()[:, :width] for width in widths]  # rows with a gap behind each
    for part in parts:
        part[2] = 0
    parts[0][1] = 0
    out = rows._empty(parts[0], 6, sum(widths))
    missing = 3 - len(parts)
    sources = [*parts, *[parts[0]] * missing]
    arguments = [*sources, *out, *[part.stride(0) for part in sources]], [*widths, *[0] * missing]
    launch("rows_kernel", max(widths), out, *arguments)
    said[f"rows {widths}"] = compare(out, rows.quantize_rows(*parts))
    parts[0][0, 5], parts[-1][3, 3] = float("nan"), float("inf")
    launch("rows_kernel", max(widths), out, *arguments)
    said[f"finite {widths}"] = out.scales.isfinite().flatten().tolist() == [False, True, True, False, True, True]
for width in (16, 208):
    gate, up, gradient = (torch.randn(5, width).bfloat16() for _ in range(3))
    hidden, to_gate, to_up = (torch.empty_like(gate) for _ in range(3))
    out = rows._empty(gate, 5, width)
    launch("swiglu_kernel", width, out, [gate, up, hidden, *out], [width])
    wanted = rows.swiglu(gate, up)
    said[f"swiglu {width}"] = torch.allclose(hidden, wanted[0], rtol=1e-2, atol=1e-3)
    said[f"swiglu rows {width}"] = compare(out, rows.quantize_rows(hidden))
    both = rows._empty(gate, 5, 2 * width)
    launch("swiglu_backward_kernel", width, both, [gradient, gate, up, hidden, to_gate, to_up, *both], [width])
    wanted = rows.swiglu_backward(gradient, gate, up)
    for name, one, other in zip(("hidden", "gate", "up"), (hidden, to_gate, to_up), wanted):
        said[f"backward {name} {width}"] = torch.allclose(one, other, rtol=1e-2, atol=1e-3)
    said[f"backward rows {width}"] = compare(both, rows.quantize_rows(to_gate, to_up))
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_tritons_kernels_compute_the_same_in_its_interpreter() -> None:
    """Widths below, at and above a block; a GPU's own conversion to e4m3 is compared in tests/gpu/test_fp8.py."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRET], cwd=REPOSITORY, capture_output=True, text=True,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) == 22 and not [name for name, right in said.items() if not right]
