"""Triton kernels that quantize rows to e4m3 while they are in the cache: plain rows, and SwiGLU's output.

One program takes one row, of any width, in blocks: it finds the largest magnitude first, and then reads the row again,
from the cache. Magnitudes are compared as integers: the bits of NaN are above those of infinity, and these above all
others, so a row with either has a scale that is not finite, and so has each product of it.
"""

import triton
import triton.language as tl


@triton.jit
def _largest(highest, values):
    bits = values.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.maximum(highest, tl.max(bits, axis=0))


@triton.jit
def _factor(highest, LEAST: tl.constexpr):
    """Return scale and its inverse for a row whose largest magnitude has these bits; 448 is e4m3's largest number."""
    largest = highest.to(tl.float32, bitcast=True)
    largest = tl.where(largest < LEAST, LEAST, largest)
    return tl.div_rn(largest, 448.0), tl.div_rn(448.0, largest)


@triton.jit
def _largest_of_row(highest, row, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        highest = _largest(highest, tl.load(row + at, mask=at < WIDTH, other=0.0))
    return highest


@triton.jit
def _write(row, out, inverse, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        values = tl.load(row + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        tl.store(out + at, (values * inverse).to(tl.float8e4nv), mask=at < WIDTH)


@triton.jit
def rows_kernel(
    one, two, three, out, scales, stride_one, stride_two, stride_three,
    ONE: tl.constexpr, TWO: tl.constexpr, THREE: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Quantize rows that lie in up to three matrices of widths ONE, TWO and THREE, with one scale for a whole row."""
    place = tl.program_id(0).to(tl.int64)
    one += place * stride_one
    two += place * stride_two
    three += place * stride_three
    highest = 0
    highest = _largest_of_row(highest, one, ONE, BLOCK)
    if TWO > 0:
        highest = _largest_of_row(highest, two, TWO, BLOCK)
    if THREE > 0:
        highest = _largest_of_row(highest, three, THREE, BLOCK)
    scale, inverse = _factor(highest, LEAST)
    tl.store(scales + place, scale)
    out += place * (ONE + TWO + THREE)
    _write(one, out, inverse, ONE, BLOCK)
    if TWO > 0:
        _write(two, out + ONE, inverse, TWO, BLOCK)
    if THREE > 0:
        _write(three, out + ONE + TWO, inverse, THREE, BLOCK)


@triton.jit
def swiglu_kernel(gate, up, hidden, out, scales, WIDTH: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr):
    """Write silu(gate) · up in 16 bits, and the same rows quantized."""
    place = tl.program_id(0).to(tl.int64)
    gate += place * WIDTH
    up += place * WIDTH
    hidden += place * WIDTH
    highest = 0
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        e = tl.load(gate + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        g = tl.load(up + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        h = (e * tl.sigmoid(e) * g).to(hidden.dtype.element_ty)
        tl.store(hidden + at, h, mask=at < WIDTH)
        highest = _largest(highest, h)
    scale, inverse = _factor(highest, LEAST)
    tl.store(scales + place, scale)
    tl.debug_barrier()  # the row is read again
    _write(hidden, out + place * WIDTH, inverse, WIDTH, BLOCK)


@triton.jit
def swiglu_backward_kernel(
    gradient, gate, up, hidden, to_gate, to_up, out, scales,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """Write silu(gate) · up again, the gradients of gate and up, and both gradients' rows quantized side by side."""
    place = tl.program_id(0).to(tl.int64)
    gradient += place * WIDTH
    gate += place * WIDTH
    up += place * WIDTH
    hidden += place * WIDTH
    to_gate += place * WIDTH
    to_up += place * WIDTH
    highest = 0
    for start in range(0, WIDTH, BLOCK):
        at = start + tl.arange(0, BLOCK)
        d = tl.load(gradient + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        e = tl.load(gate + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        g = tl.load(up + at, mask=at < WIDTH, other=0.0).to(tl.float32)
        s = tl.sigmoid(e)
        f = e * s
        de = (d * g * s * (1.0 + e * (1.0 - s))).to(to_gate.dtype.element_ty)
        dg = (d * f).to(to_up.dtype.element_ty)
        tl.store(hidden + at, (f * g).to(hidden.dtype.element_ty), mask=at < WIDTH)
        tl.store(to_gate + at, de, mask=at < WIDTH)
        tl.store(to_up + at, dg, mask=at < WIDTH)
        highest = _largest(_largest(highest, de), dg)
    scale, inverse = _factor(highest, LEAST)
    tl.store(scales + place, scale)
    tl.debug_barrier()  # the rows are read again
    out += place * (2 * WIDTH)
    _write(to_gate, out, inverse, WIDTH, BLOCK)
    _write(to_up, out + WIDTH, inverse, WIDTH, BLOCK)
