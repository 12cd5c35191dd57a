"""Triton kernels that write each block's levels, read back from the scales that are written; Q8_0's blocks as a whole.

A program is a few blocks by 32 weights. All is done as ggml's scalar code does it (ggml-quants.c, MIT); launch with
enable_fp_fusion=False.
"""

import triton
import triton.language as tl

from toolkit.kernels.gpu.scales import nearest, store_half
from toolkit.kernels.gpu.search import INFINITY


@triton.jit
def weights(x, index, mask, BF16: tl.constexpr):
    """Return some weights as float32; `x` points to float32, or to bfloat16 as 16-bit integers."""
    if BF16:
        return (tl.load(x + index, mask=mask, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(x + index, mask=mask, other=0.0)


@triton.jit
def load_half(out, place, mask):
    """Return the float16 at an even byte as float32."""
    half = tl.load((out + place).to(tl.pointer_type(tl.int16)), mask=mask, other=0)
    return half.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit(do_not_specialize=["count"])
def levels_k(
    out, x, chosen, chosen_lows, block_flags, count,
    BITS: tl.constexpr, BF16: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Write the levels of Q4_K (BITS 4) or Q5_K (BITS 5) blocks whose scales are written."""
    size: tl.constexpr = 144 if BITS == 4 else 176
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    row = tl.arange(0, 32)[None, :]
    inside = mask[:, None] & (row >= 0)
    start = (block * size)[:, None]
    d = load_half(out, block * size, mask)
    dmin = load_half(out, block * size + 2, mask)
    high = tl.zeros([BLOCKS, 32], tl.int32)
    bad = high != 0
    packed = high
    for j in tl.static_range(8):
        place = out + block * size + 4
        if j < 4:
            code = tl.load(place + j, mask=mask, other=0).to(tl.int32) & 63
            low_code = tl.load(place + j + 4, mask=mask, other=0).to(tl.int32) & 63
        else:
            both = tl.load(place + j + 4, mask=mask, other=0).to(tl.int32)
            code = (both & 15) | ((tl.load(place + j - 4, mask=mask, other=0).to(tl.int32) >> 6) << 4)
            low_code = (both >> 4) | ((tl.load(place + j, mask=mask, other=0).to(tl.int32) >> 6) << 4)
        step = (d * code.to(tl.float32))[:, None]
        low = (dmin * low_code.to(tl.float32))[:, None]
        iscale = tl.load(chosen + block * 8 + j, mask=mask, other=0.0)[:, None]
        searched = tl.load(chosen_lows + block * 8 + j, mask=mask, other=0.0)[:, None]
        xs = weights(x, (block * 256)[:, None] + j * 32 + row, inside, BF16)
        value = tl.where(step == 0.0, iscale * (xs - searched), tl.div_rn(xs + low, step))
        bad = bad | (value != value)
        level = tl.minimum(tl.maximum(nearest(value), 0), (1 << BITS) - 1)
        high = high | ((level >> 4) << j)
        if j % 2 == 0:
            packed = level & 15
        else:
            packed = packed | ((level & 15) << 4)
            tl.store(out + start + (size - 128) + j // 2 * 32 + row, packed.to(tl.uint8), mask=inside)
    if BITS == 5:
        tl.store(out + start + 16 + row, high.to(tl.uint8), mask=inside)
    flag = tl.load(block_flags + block, mask=mask, other=0).to(tl.int32)
    tl.store(block_flags + block, (flag | tl.max(bad.to(tl.int32), axis=1)).to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["count"])
def levels_6(out, x, chosen, block_flags, count, BF16: tl.constexpr, BLOCKS: tl.constexpr):
    """Write the levels of Q6_K blocks whose scales are written."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    row = tl.arange(0, 32)[None, :]
    inside = mask[:, None] & (row >= 0)
    start = (block * 210)[:, None]
    d = load_half(out, block * 210 + 208, mask)[:, None]
    high = tl.zeros([BLOCKS, 32], tl.int32)
    bad = high != 0
    first = high
    second = high
    for j in tl.static_range(8):  # 32 weights each: two sub-blocks
        code = tl.load(out + start + 192 + 2 * j + row // 16, mask=inside, other=0).to(tl.int8, bitcast=True)
        step = d * code.to(tl.float32)
        iscale = tl.load(chosen + (block * 16)[:, None] + 2 * j + row // 16, mask=inside, other=0.0)
        xs = weights(x, (block * 256)[:, None] + j * 32 + row, inside, BF16)
        value = tl.where(step == 0.0, iscale * xs, tl.div_rn(xs, step))
        bad = bad | (value != value)
        level = tl.minimum(tl.maximum(nearest(value), -32), 31) + 32
        level = tl.where((step == 0.0) & (iscale == 0.0), 0, level)
        if j % 4 == 0:
            first = level & 15
            high = level >> 4
        elif j % 4 == 1:
            second = level & 15
            high = high | ((level >> 4) << 2)
        elif j % 4 == 2:
            first = first | ((level & 15) << 4)
            high = high | ((level >> 4) << 4)
        else:
            second = second | ((level & 15) << 4)
            high = high | ((level >> 4) << 6)
            tl.store(out + start + j // 4 * 64 + row, first.to(tl.uint8), mask=inside)
            tl.store(out + start + j // 4 * 64 + 32 + row, second.to(tl.uint8), mask=inside)
            tl.store(out + start + 128 + j // 4 * 32 + row, high.to(tl.uint8), mask=inside)
    flag = tl.load(block_flags + block, mask=mask, other=0).to(tl.int32)
    tl.store(block_flags + block, (flag | tl.max(bad.to(tl.int32), axis=1)).to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["count"])
def blocks_8(out, x, block_flags, count, BF16: tl.constexpr, BLOCKS: tl.constexpr):
    """Write Q8_0 blocks: a float16 and 32 levels of 8 bits, rounded half away from zero."""
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < count
    row = tl.arange(0, 32)[None, :]
    inside = mask[:, None] & (row >= 0)
    xs = weights(x, (block * 32)[:, None] + row, inside, BF16)
    largest = tl.max(tl.abs(xs), axis=1)
    d = tl.div_rn(largest, tl.zeros_like(largest) + 127.0)
    inverse = tl.where(d != 0.0, tl.div_rn(tl.zeros_like(d) + 1.0, d), 0.0)
    value = xs * inverse[:, None]
    size = tl.abs(value)
    whole = tl.minimum(size, 128.0).to(tl.int32).to(tl.float32)
    whole = whole + (size - whole >= 0.5).to(tl.float32)
    level = tl.where(value < 0.0, -whole, whole).to(tl.int32)
    store_half(out, block * 34, d, mask)
    tl.store(out + (block * 34)[:, None] + 2 + row, level.to(tl.uint8), mask=inside)
    bad = ~(size <= 127.5) | ~(tl.abs(xs) < INFINITY)
    tl.store(block_flags + block, tl.max(bad.to(tl.int32), axis=1).to(tl.int8), mask=mask)
