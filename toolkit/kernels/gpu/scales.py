"""Triton kernels that write each block's scales, from those that the search found.

One lane is one block. All is done as ggml's scalar code does it (ggml-quants.c, MIT); launch with
enable_fp_fusion=False.
"""

import triton
import triton.language as tl

from toolkit.kernels.gpu.search import EPSILON, INFINITY, MAGIC


@triton.jit
def nearest(value):
    """Return the nearest integer, wrapping far outside of ±2²² as ggml's nearest_int does; not for NaN."""
    return ((value + MAGIC).to(tl.int32, bitcast=True) & 0x7FFFFF) - 0x400000


@triton.jit
def store_half(out, place, value, mask):
    """Store a float32 as float16, rounded to nearest even, at an even byte."""
    half = value.to(tl.float16).to(tl.int16, bitcast=True)
    tl.store((out + place).to(tl.pointer_type(tl.int16)), half, mask=mask)


@triton.jit
def any_flag(flags, block, mask, SUBS: tl.constexpr):
    """Tell which blocks hold a flagged sub-block."""
    flag = block != block
    for j in tl.static_range(SUBS):
        flag = flag | (tl.load(flags + block * SUBS + j, mask=mask, other=0) != 0)
    return flag


@triton.jit
def largest_scale(values, block, mask, SUBS: tl.constexpr, MOST: tl.constexpr):
    """Return a block's largest scale, its sub-blocks' codes of up to MOST, and what went out of range."""
    xs = ()
    largest = tl.zeros_like(block).to(tl.float32)
    for j in tl.static_range(SUBS):
        xs = xs + (tl.load(values + block * SUBS + j, mask=mask, other=0.0),)
        largest = tl.where(xs[j] > largest, xs[j], largest)
    inverse = tl.where(largest > 0.0, tl.div_rn(tl.zeros_like(largest) + MOST, largest), 0.0)
    codes = ()
    flag = ~(inverse < INFINITY)
    for j in tl.static_range(SUBS):
        flag = flag | ~(xs[j] >= 0.0) | ~(xs[j] < INFINITY)
        codes = codes + (tl.minimum(nearest(inverse * xs[j]), MOST),)
    return tl.div_rn(largest, tl.zeros_like(largest) + MOST), codes, flag


@triton.jit
def refit(xs, ws, codes, sum_xl, sum_l2, flag, SUBS: tl.constexpr, MOST: tl.constexpr):
    """Change one code after the other where that lessens the error; return codes, sums, and what went out of range."""
    changed = ()
    for j in tl.static_range(SUBS):
        level = codes[j].to(tl.float32)
        rest_xl = sum_xl - ws[j] * xs[j] * level
        rest_l2 = sum_l2 - ws[j] * level * level
        usable = (rest_xl > 0.0) & (rest_l2 > 0.0)
        wanted = tl.div_rn(xs[j] * rest_l2, rest_xl)
        flag = flag | (usable & (wanted != wanted))
        code = tl.minimum(nearest(wanted), MOST)
        level = code.to(tl.float32)
        rest_xl = rest_xl + ws[j] * xs[j] * level
        rest_l2 = rest_l2 + ws[j] * level * level
        better = usable & (code != codes[j]) & (rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2)
        flag = flag | (better & (code < 0))
        changed = changed + (tl.where(better, code, codes[j]),)
        sum_xl = tl.where(better, rest_xl, sum_xl)
        sum_l2 = tl.where(better, rest_l2, sum_l2)
    return changed, sum_xl, sum_l2, flag


@triton.jit
def fitted_scale(values, sums, factors, block, mask, SUBS: tl.constexpr, MOST: tl.constexpr):
    """Return the scale and codes that fit a block's scales best, weighted by `sums`, and what went out of range."""
    xs = ()
    ws = ()
    largest = tl.zeros_like(block).to(tl.float32)
    flag = block != block
    for j in tl.static_range(SUBS):
        xs = xs + (tl.load(values + block * SUBS + j, mask=mask, other=0.0),)
        ws = ws + (tl.load(sums + block * SUBS + j, mask=mask, other=0.0),)
        largest = tl.where(largest > xs[j], largest, xs[j])
        flag = flag | ~(xs[j] >= 0.0) | ~(xs[j] < INFINITY)
    one = tl.zeros_like(largest) + 1.0
    iscale = tl.div_rn(one * MOST, largest)
    scale = tl.div_rn(one, iscale)
    flag = flag | ((largest >= EPSILON) & ~(iscale * largest < 2.0 * MOST))
    best = tl.zeros_like(largest)
    for j in tl.static_range(SUBS):
        off = xs[j] - scale * nearest(iscale * xs[j]).to(tl.float32)
        best = best + ws[j] * off * off
    for step in range(0, 8):
        tried = tl.div_rn(one * tl.load(factors + step), largest)
        scale = tl.div_rn(one, tried)
        error = tl.zeros_like(largest)
        for j in tl.static_range(SUBS):
            off = xs[j] - scale * tl.minimum(nearest(tried * xs[j]), MOST).to(tl.float32)
            error = error + ws[j] * off * off
        iscale = tl.where(error < best, tried, iscale)
        best = tl.where(error < best, error, best)
    codes = ()
    sum_xl = tl.zeros_like(largest)
    sum_l2 = tl.zeros_like(largest)
    for j in tl.static_range(SUBS):
        code = tl.minimum(nearest(iscale * xs[j]), MOST)
        codes = codes + (code,)
        level = code.to(tl.float32)
        sum_xl = sum_xl + ws[j] * xs[j] * level
        sum_l2 = sum_l2 + ws[j] * level * level
    for _ in range(0, 5):  # ggml stops once nothing changes; going on then changes nothing
        codes, sum_xl, sum_l2, flag = refit(xs, ws, codes, sum_xl, sum_l2, flag, SUBS, MOST)
    nothing = largest < EPSILON
    kept = ()
    for j in tl.static_range(SUBS):
        kept = kept + (tl.where(nothing, 0, codes[j]),)
    found = tl.where(sum_l2 > 0.0, tl.div_rn(sum_xl, sum_l2), 0.0)
    return tl.where(nothing, 0.0, found), kept, (flag | ~(sum_l2 > 0.0)) & ~nothing


@triton.jit(do_not_specialize=["count"])
def scales_k(
    out, scales, lows, sums, factors, flags, block_flags, count,
    SIZE: tl.constexpr, FITTED: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write what Q4_K and Q5_K blocks of SIZE bytes begin with: two float16 and 8 scales and offsets of 6 bits each."""
    block = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = block < count
    if FITTED:
        d, codes, flag = fitted_scale(scales, sums, factors, block, mask, 8, 63)
        dmin, low_codes, low_flag = fitted_scale(lows, sums, factors, block, mask, 8, 63)
    else:
        d, codes, flag = largest_scale(scales, block, mask, 8, 63)
        dmin, low_codes, low_flag = largest_scale(lows, block, mask, 8, 63)
    store_half(out, block * SIZE, d, mask)
    store_half(out, block * SIZE + 2, dmin, mask)
    for j in tl.static_range(4):
        place = out + block * SIZE + 4 + j
        tl.store(place, (codes[j] | ((codes[j + 4] >> 4) << 6)).to(tl.uint8), mask=mask)
        tl.store(place + 4, (low_codes[j] | ((low_codes[j + 4] >> 4) << 6)).to(tl.uint8), mask=mask)
        tl.store(place + 8, ((codes[j + 4] & 15) | ((low_codes[j + 4] & 15) << 4)).to(tl.uint8), mask=mask)
    flag = flag | low_flag | any_flag(flags, block, mask, 8)
    tl.store(block_flags + block, flag.to(tl.int8), mask=mask)


@triton.jit(do_not_specialize=["count"])
def scales_6(out, scales, chosen, flags, block_flags, count, LANES: tl.constexpr):
    """Write the 16 scales of 8 bits and the float16 that Q6_K blocks end with."""
    block = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = block < count
    largest = tl.zeros([LANES], tl.float32)
    extreme = tl.zeros([LANES], tl.float32)
    some = block != block
    flag = any_flag(flags, block, mask, 16)
    for j in tl.static_range(16):
        scale = tl.load(scales + block * 16 + j, mask=mask, other=0.0)
        some = some | (tl.load(chosen + block * 16 + j, mask=mask, other=0.0) != 0.0)
        extreme = tl.where(tl.abs(scale) > largest, scale, extreme)
        largest = tl.where(tl.abs(scale) > largest, tl.abs(scale), largest)
        flag = flag | ~(tl.abs(scale) < INFINITY)
    nothing = largest < EPSILON
    flag = flag | (nothing & some)  # ggml then clears levels that the search found
    one = tl.zeros_like(largest) + 1.0
    iscale = tl.div_rn(one * -128.0, extreme)
    flag = flag | (~nothing & ~(tl.abs(iscale) < INFINITY))
    store_half(out, block * 210 + 208, tl.where(nothing, 0.0, tl.div_rn(one, iscale)), mask)
    for j in tl.static_range(16):
        scale = tl.load(scales + block * 16 + j, mask=mask, other=0.0)
        code = tl.where(nothing, 0, tl.minimum(nearest(iscale * scale), 127))
        tl.store(out + block * 210 + 192 + j, code.to(tl.uint8), mask=mask)
    tl.store(block_flags + block, flag.to(tl.int8), mask=mask)
