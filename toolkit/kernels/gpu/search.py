"""Triton kernels that look for the scales of sub-blocks: one lane is one sub-block, its weights lie in registers.

Every lane does what ggml's scalar code does, in its order: sums run through the weights one by one, nothing is
contracted or reassociated (launch with enable_fp_fusion=False), divisions and roots are rounded correctly. Each `if` of
the scalar code is a `where`; the chosen steps' scale and offset are kept instead of their levels, which are recomputed.
A lane that leaves the range in which rounding by addition is exact raises its flag: ggml itself then quantizes the
block. The algorithm is defined by ggml's ggml-quants.c (MIT).
"""

import triton
import triton.language as tl

# Adding 1.5 · 2²³ leaves no room for a fraction in float32; exact as long as |v| stays below LARGEST.
MAGIC = tl.constexpr(12582912.0)
LARGEST = tl.constexpr(4194303.0)
INFINITY = tl.constexpr(float("inf"))
EPSILON = tl.constexpr(1e-15)  # ggml's GROUP_MAX_EPS: what is smaller counts as zero

# How a weight's error counts: its own size and its sub-block's; its size; its square; the importance matrix's value as
# it is; that value times sqrt(mean square + square).
SPREAD, SIZE, SQUARE, GIVEN, IMPORTANCE = (tl.constexpr(value) for value in range(5))


@triton.jit
def load(x, lane, mask, N: tl.constexpr, BF16: tl.constexpr):
    """Return the weights of each lane's sub-block as a tuple; `x` points to them as words of 64 bits."""
    values = ()
    for word in tl.static_range(N // 4 if BF16 else N // 2):
        bits = tl.load(x + lane * (N // 4 if BF16 else N // 2) + word, mask=mask, other=0)
        low = bits.to(tl.int32)
        high = (bits >> 32).to(tl.int32)
        if BF16:
            values = values + (
                (low << 16).to(tl.float32, bitcast=True),
                (low & -65536).to(tl.float32, bitcast=True),
                (high << 16).to(tl.float32, bitcast=True),
                (high & -65536).to(tl.float32, bitcast=True),
            )
        else:
            values = values + (low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True))
    return values


@triton.jit
def weigh(xs, lane, mask, importance, squares, per_row, per_group, N: tl.constexpr, KIND: tl.constexpr):
    """Return how much each weight's error counts: `squares` are the groups' scaled sums of squares."""
    ws = ()
    if KIND == SPREAD:
        total = xs[0] * xs[0]
        for i in tl.static_range(1, N):
            total = total + xs[i] * xs[i]
        average = tl.sqrt_rn(total * (1.0 / N))  # a power of two: exactly the quotient
        for i in tl.static_range(N):
            ws = ws + (average + tl.abs(xs[i]),)
    elif KIND == SIZE:
        for i in tl.static_range(N):
            ws = ws + (tl.abs(xs[i]),)
    elif KIND == SQUARE:
        for i in tl.static_range(N):
            ws = ws + (xs[i] * xs[i],)
    else:
        start = importance + (lane % per_row) * N
        if KIND == GIVEN:
            for i in tl.static_range(N):
                ws = ws + (tl.load(start + i, mask=mask, other=0.0),)
        else:
            mean = tl.load(squares + lane // per_group, mask=mask, other=0.0)
            for i in tl.static_range(N):
                given = tl.load(start + i, mask=mask, other=0.0)
                ws = ws + (given * tl.sqrt_rn(mean + xs[i] * xs[i]),)
    return ws


@triton.jit(do_not_specialize=["count"])
def sums_of_squares(
    x, out, count, factor, divisor, WORDS: tl.constexpr, BF16: tl.constexpr, LANES: tl.constexpr
):  # fmt: skip
    """Write the sum of squares of each group of weights (WORDS of 64 bits each), times `factor` / `divisor`."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = lane < count
    total = tl.zeros([LANES], tl.float32)
    for word in range(0, WORDS):
        values = load(x + lane * (WORDS - 1) + word, lane, mask, 4 if BF16 else 2, BF16)
        for i in tl.static_range(4 if BF16 else 2):
            total = total + values[i] * values[i]
    tl.store(out + lane, tl.div_rn(total * factor, tl.zeros([LANES], tl.float32) + divisor), mask=mask)


@triton.jit
def offset_levels(xs, iscale, low, N: tl.constexpr, MOST: tl.constexpr):
    """Return the levels 0 … MOST nearest to iscale · (x − low), as floats."""
    levels = ()
    for i in tl.static_range(N):
        level = (iscale * (xs[i] - low) + MAGIC) - MAGIC
        levels = levels + (tl.minimum(tl.maximum(level, 0.0), MOST * 1.0),)
    return levels


@triton.jit
def offset_error(xs, ws, levels, scale, low, N: tl.constexpr, ABSOLUTE: tl.constexpr):
    """Return the weighted sum of the squared (or absolute) errors, added in order."""
    error = tl.zeros_like(scale)
    for i in tl.static_range(N):
        off = scale * levels[i] + low - xs[i]
        error = error + ws[i] * (tl.abs(off) if ABSOLUTE else off * off)
    return error


@triton.jit(do_not_specialize=["count", "per_row", "per_group"])
def search_offset(
    x, importance, squares, factors, scales, lows, sums, chosen, chosen_lows, flags, count, per_row, per_group,
    N: tl.constexpr, MOST: tl.constexpr, STEPS: tl.constexpr, KIND: tl.constexpr, ABSOLUTE: tl.constexpr,
    BF16: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Find scale and offset of sub-blocks whose levels run from 0 to MOST: weight ≈ scale · level − offset.

    `factors[0]` is the number of levels, the others are those of the steps; out come scale, offset, sum of the
    errors' weights, and the inverse scale and the minimum that the best step's levels were made with.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = lane < count
    xs = load(x, lane, mask, N, BF16)
    ws = weigh(xs, lane, mask, importance, squares, per_row, per_group, N, KIND)
    low = xs[0]
    high = xs[0]
    sum_w = ws[0]
    sum_x = ws[0] * xs[0]
    for i in tl.static_range(1, N):
        low = tl.where(xs[i] < low, xs[i], low)
        high = tl.where(xs[i] > high, xs[i], high)
        sum_w = sum_w + ws[i]
        sum_x = sum_x + ws[i] * xs[i]
    lowest = low
    low = tl.where(low > 0.0, 0.0, low)
    flat = high == low
    iscale = tl.div_rn(tl.zeros_like(high) + tl.load(factors), high - low)
    scale = tl.div_rn(tl.zeros_like(high) + 1.0, iscale)
    flag = ~((tl.abs(iscale * (lowest - low)) <= LARGEST) & (tl.abs(iscale * (high - low)) <= LARGEST))
    best = offset_error(xs, ws, offset_levels(xs, iscale, low, N, MOST), scale, low, N, ABSOLUTE)
    best_iscale = iscale
    best_low = low
    for step in range(1, STEPS + 1):
        iscale = tl.div_rn(tl.zeros_like(high) + tl.load(factors + step), high - low)
        flag = flag | ~((tl.abs(iscale * (lowest - low)) <= LARGEST) & (tl.abs(iscale * (high - low)) <= LARGEST))
        levels = offset_levels(xs, iscale, low, N, MOST)
        sum_l = tl.zeros_like(high)
        sum_l2 = tl.zeros_like(high)
        sum_xl = tl.zeros_like(high)
        for i in tl.static_range(N):
            weighted = ws[i] * levels[i]
            sum_l = sum_l + weighted
            sum_l2 = sum_l2 + weighted * levels[i]
            sum_xl = sum_xl + weighted * xs[i]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        step_scale = tl.div_rn(sum_w * sum_xl - sum_x * sum_l, determinant)
        step_low = tl.div_rn(sum_l2 * sum_x - sum_l * sum_xl, determinant)
        positive = step_low > 0.0
        step_scale = tl.where(positive, tl.div_rn(sum_xl, sum_l2), step_scale)
        step_low = tl.where(positive, 0.0, step_low)
        error = offset_error(xs, ws, levels, step_scale, step_low, N, ABSOLUTE)
        better = (determinant > 0.0) & (error < best) & ~flat
        best = tl.where(better, error, best)
        scale = tl.where(better, step_scale, scale)
        best_iscale = tl.where(better, iscale, best_iscale)
        best_low = tl.where(better, low, best_low)
        low = tl.where(better, step_low, low)
    flag = (flag & ~flat) | ~(sum_w < INFINITY) | ~(tl.abs(sum_x) < INFINITY)
    tl.store(scales + lane, tl.where(flat, 0.0, scale), mask=mask)
    tl.store(lows + lane, -low, mask=mask)
    tl.store(sums + lane, sum_w, mask=mask)
    tl.store(chosen + lane, tl.where(flat, 0.0, best_iscale), mask=mask)
    tl.store(chosen_lows + lane, best_low, mask=mask)
    tl.store(flags + lane, flag.to(tl.int8), mask=mask)


@triton.jit
def signed_sums(xs, ws, wx, iscale, N: tl.constexpr, MOST: tl.constexpr):
    """Return the sums of weight · x · level and weight · level² for the levels nearest to iscale · x, in order."""
    sum_xl = tl.zeros_like(iscale)
    sum_l2 = tl.zeros_like(iscale)
    for i in tl.static_range(N):
        level = (iscale * xs[i] + MAGIC) - MAGIC
        level = tl.minimum(tl.maximum(level, -1.0 * MOST), MOST - 1.0)
        sum_xl = sum_xl + wx[i] * level
        sum_l2 = sum_l2 + ws[i] * level * level
    return sum_xl, sum_l2


@triton.jit(do_not_specialize=["count", "per_row", "per_group"])
def search_signed(
    x, importance, squares, factors, scales, sums, chosen, flags, count, per_row, per_group,
    N: tl.constexpr, MOST: tl.constexpr, STEPS: tl.constexpr, KIND: tl.constexpr, BF16: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Find the scale of sub-blocks whose levels run from −MOST to MOST − 1: weight ≈ scale · level.

    `factors` are −MOST and those of the steps; `chosen` is the inverse scale of the best one, 0 where all weights are
    (nearly) zero.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    mask = lane < count
    xs = load(x, lane, mask, N, BF16)
    ws = weigh(xs, lane, mask, importance, squares, per_row, per_group, N, KIND)
    largest = tl.zeros([LANES], tl.float32)
    extreme = tl.zeros([LANES], tl.float32)
    total = tl.zeros([LANES], tl.float32)
    sum_w = tl.zeros([LANES], tl.float32)
    wx = ()
    for i in tl.static_range(N):
        extreme = tl.where(tl.abs(xs[i]) > largest, xs[i], extreme)
        largest = tl.where(tl.abs(xs[i]) > largest, tl.abs(xs[i]), largest)
        total = total + tl.abs(xs[i])
        sum_w = sum_w + ws[i]
        wx = wx + (ws[i] * xs[i],)
    zero = largest < EPSILON
    best_iscale = tl.div_rn(tl.zeros([LANES], tl.float32) + tl.load(factors), extreme)
    sum_xl, sum_l2 = signed_sums(xs, ws, wx, best_iscale, N, MOST)
    scale = tl.where(sum_l2 != 0.0, tl.div_rn(sum_xl, sum_l2), 0.0)
    best = scale * sum_xl
    for step in range(1, STEPS + 1):
        iscale = tl.div_rn(tl.zeros([LANES], tl.float32) + tl.load(factors + step), extreme)
        sum_xl, sum_l2 = signed_sums(xs, ws, wx, iscale, N, MOST)
        better = (sum_l2 > 0.0) & (sum_xl * sum_xl > best * sum_l2)
        scale = tl.where(better, tl.div_rn(sum_xl, sum_l2), scale)
        best = tl.where(better, scale * sum_xl, best)
        best_iscale = tl.where(better, iscale, best_iscale)
    flag = ~(total < INFINITY) | (~zero & ~(tl.abs(best_iscale) < INFINITY))
    tl.store(scales + lane, tl.where(zero, 0.0, scale), mask=mask)
    tl.store(sums + lane, sum_w, mask=mask)
    tl.store(chosen + lane, tl.where(zero, 0.0, best_iscale), mask=mask)
    tl.store(flags + lane, flag.to(tl.int8), mask=mask)
