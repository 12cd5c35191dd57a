// The searches for scales: ggml's, lane by lane, with its operations in its order.
//
// Where the scalar code stores levels while it searches, these remember the inverse scale that gave them: a level is
// round(iscale * (x - base)), clamped. `sure` says in which lanes the fast way is proven to be exact: rounding to float
// integers instead of ggml's bit trick needs |value| < 2^22, which is tested at both ends of the range.

#pragma once

#include "lanes.h"

namespace {

constexpr float SMALLEST = 1e-15f;   // below it a group counts as zero
constexpr float ROUNDS = 4194303.0f;  // up to here `round` is `nearest`

// x ≈ scale * level + low, levels from 0 to TOP
struct Line {
    Real scale, low, iscale, base, weight;
    Mask sure;
};

template <int TOP, bool UPPER> INLINE Real level(Real x, Real iscale, Real base) {
    const Real l = max(round(iscale * (x - base)), Real(0));
    return UPPER ? min(l, Real(TOP)) : l;
}

template <int N, int TOP, bool UPPER>
INLINE void sums(const Real *x, const Real *w, Real iscale, Real base, Real *l, Real &sum_l, Real &sum_l2,
                 Real &sum_xl) {
    sum_l = sum_l2 = sum_xl = Real(0);
    for (int i = 0; i < N; ++i) {
        l[i] = level<TOP, UPPER>(x[i], iscale, base);
        const Real wl = w[i] * l[i];
        sum_l = sum_l + wl;
        sum_l2 = sum_l2 + wl * l[i];
        sum_xl = sum_xl + wl * x[i];
    }
}

template <int N, bool ABSOLUTE> INLINE Real error(const Real *x, const Real *w, const Real *l, Real scale, Real low) {
    Real sum(0);
    for (int i = 0; i < N; ++i) {
        const Real off = scale * l[i] + low - x[i];
        sum = sum + w[i] * (ABSOLUTE ? abs(off) : off * off);
    }
    return sum;
}

// Try `steps` + 1 inverse scales around TOP / range and keep the least-squares line with the smallest weighted error.
template <int N, int TOP, bool ABSOLUTE>
INLINE Line fit_line(const Real *x, const Real *w, float first, float step, int steps) {
    Real smallest = x[0], largest = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < N; ++i) {
        smallest = min(x[i], smallest);
        largest = max(x[i], largest);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    Real l[N];
    Line line;
    Real low = select(smallest > Real(0), Real(0), smallest);
    const Mask flat = largest == low;
    line.base = low;
    line.iscale = Real(TOP) / (largest - low);
    line.scale = Real(1) / line.iscale;
    Mask inside = line.iscale * (largest - low) <= Real(TOP + 0.495f);
    for (int i = 0; i < N; ++i) l[i] = level<TOP, true>(x[i], line.iscale, low);
    Real best = error<N, ABSOLUTE>(x, w, l, line.scale, low);
    const Real lowest = low;
    for (int is = 0; is <= steps; ++is) {
        const float numerator = first + step * is + TOP;
        const bool upper = numerator > TOP + 0.49f;
        const Real iscale = Real(numerator) / (largest - low);
        const Real one = iscale * (smallest - low), other = iscale * (largest - low);
        const Real limit(upper ? ROUNDS : TOP + 0.495f);
        inside = inside & (one >= Real(-ROUNDS)) & (other >= Real(-ROUNDS)) & (one <= limit) & (other <= limit);
        Real sum_l, sum_l2, sum_xl;
        if (upper) {
            sums<N, TOP, true>(x, w, iscale, low, l, sum_l, sum_l2, sum_xl);
        } else {
            sums<N, TOP, false>(x, w, iscale, low, l, sum_l, sum_l2, sum_xl);
        }
        const Real determinant = sum_w * sum_l2 - sum_l * sum_l;
        Real new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        Real new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        const Mask above = new_low > Real(0);
        if (any(above)) {
            new_low = select(above, Real(0), new_low);
            new_scale = select(above, sum_xl / sum_l2, new_scale);
        }
        const Real off = error<N, ABSOLUTE>(x, w, l, new_scale, new_low);
        const Mask better = (determinant > Real(0)) & (off < best);
        if (any(better)) {
            best = select(better, off, best);
            line.scale = select(better, new_scale, line.scale);
            line.iscale = select(better, iscale, line.iscale);
            line.base = select(better, low, line.base);
            low = select(better, new_low, low);
        }
    }
    line.scale = select(flat, Real(0), line.scale);
    line.iscale = select(flat, Real(0), line.iscale);
    line.base = select(flat, Real(0), line.base);
    line.low = select(flat, lowest, low);
    line.weight = sum_w;
    line.sure = finite(sum_w) & finite(sum_x) & (inside | flat);
    return line;
}

// x ≈ scale * level, levels from -TOP to TOP - 1; `zero` where all is (next to) zero and ggml stores zeros
struct Slope {
    Real scale, iscale;
    Mask zero, sure;
};

template <int N, bool LOWER, bool UPPER>
INLINE void slope_sums(const Real *x, const Real *w, const Real *wx, Real iscale, float top, Real &sum_lx,
                       Real &sum_l2) {
    sum_lx = sum_l2 = Real(0);
    for (int i = 0; i < N; ++i) {
        Real l = round(iscale * x[i]);
        if (UPPER) l = min(l, Real(top - 1));
        if (LOWER) l = max(l, Real(-top));
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
}

// The value of the largest magnitude (the first of equals), and where one is NaN.
template <int N> INLINE Real extreme(const Real *x, Real &magnitude, Mask &sure) {
    Real largest(0);
    magnitude = Real(0);
    sure = ~none();
    for (int i = 0; i < N; ++i) {
        const Real size = abs(x[i]);
        const Mask more = size > magnitude;
        largest = select(more, x[i], largest);
        magnitude = select(more, size, magnitude);
        sure = sure & (x[i] == x[i]);
    }
    sure = sure & finite(magnitude);
    return largest;
}

// Weights `w`, and 18 steps around -TOP / extreme.
template <int N> INLINE Slope fit_slope(const Real *x, const Real *w, float top) {
    Slope slope;
    Real size, wx[N];
    const Real largest = extreme<N>(x, size, slope.sure);
    for (int i = 0; i < N; ++i) wx[i] = w[i] * x[i];
    slope.zero = size < Real(SMALLEST);
    slope.iscale = Real(-top) / largest;
    Real sum_lx, sum_l2;
    slope_sums<N, true, true>(x, w, wx, slope.iscale, top, sum_lx, sum_l2);
    slope.scale = select(sum_l2 != Real(0), sum_lx / sum_l2, Real(0));
    Real best = slope.scale * sum_lx;
    for (int is = -9; is <= 9; ++is) {
        if (is == 0) continue;
        const Real iscale = Real(-(top + 0.1f * is)) / largest;
        if (is < -5) {  // at most top - 0.6: nothing to clamp
            slope_sums<N, false, false>(x, w, wx, iscale, top, sum_lx, sum_l2);
        } else if (is < 5) {  // at most top + 0.4
            slope_sums<N, false, true>(x, w, wx, iscale, top, sum_lx, sum_l2);
        } else {
            slope_sums<N, true, true>(x, w, wx, iscale, top, sum_lx, sum_l2);
        }
        const Mask better = (sum_l2 > Real(0)) & (sum_lx * sum_lx > best * sum_l2);
        if (any(better)) {
            slope.scale = select(better, sum_lx / sum_l2, slope.scale);
            best = select(better, slope.scale * sum_lx, best);
            slope.iscale = select(better, iscale, slope.iscale);
        }
    }
    slope.scale = select(slope.zero, Real(0), slope.scale);
    slope.sure = slope.sure & finite(slope.scale);
    return slope;
}

// Levels from 0 to `top` for scales (all of them 0 or more), weighted: ggml's search for the scale of scales.
template <int N> INLINE Real fit_scales(const Real *x, const Real *w, float top, Real *l, Mask &sure) {
    Real largest(0);
    for (int i = 0; i < N; ++i) {
        largest = max(largest, x[i]);
        sure = sure & (x[i] >= Real(0)) & finite(x[i]) & finite(w[i]);  // ggml's levels are bytes: negative ones wrap
    }
    const Mask zero = largest < Real(SMALLEST);
    Real iscale = Real(top) / largest, scale = Real(1) / iscale, best(0);
    sure = sure & (zero | (iscale * largest <= Real(top + 0.4f)));
    for (int i = 0; i < N; ++i) {
        const Real off = x[i] - scale * round(iscale * x[i]);
        best = best + w[i] * off * off;
    }
    for (int is = -4; is <= 4; ++is) {
        if (is == 0) continue;
        const Real iscale_is = Real(0.1f * is + top) / largest, scale_is = Real(1) / iscale_is;
        Real sum(0);
        for (int i = 0; i < N; ++i) {
            const Real off = x[i] - scale_is * min(round(iscale_is * x[i]), Real(top));
            sum = sum + w[i] * off * off;
        }
        const Mask better = sum < best;
        best = select(better, sum, best);
        iscale = select(better, iscale_is, iscale);
    }
    Real sum_lx(0), sum_l2(0);
    for (int i = 0; i < N; ++i) {
        l[i] = min(round(iscale * x[i]), Real(top));
        sum_lx = sum_lx + w[i] * x[i] * l[i];
        sum_l2 = sum_l2 + w[i] * l[i] * l[i];
    }
    for (int again = 0; again < 5; ++again) {
        Mask changed = none();
        for (int i = 0; i < N; ++i) {
            const Real wx = w[i] * x[i];
            Real slx = sum_lx - wx * l[i], sl2 = sum_l2 - w[i] * l[i] * l[i];
            const Real ratio = x[i] * sl2 / slx;
            const Mask open = (slx > Real(0)) & (sl2 > Real(0)) & ~zero;
            sure = sure & (~open | (abs(ratio) <= Real(ROUNDS)));
            const Real next = min(round(ratio), Real(top));
            slx = slx + wx * next;
            sl2 = sl2 + w[i] * next * next;
            const Mask better = open & (next != l[i]) & (slx * slx * sum_l2 > sum_lx * sum_lx * sl2);
            l[i] = select(better, next, l[i]);
            sum_lx = select(better, slx, sum_lx);
            sum_l2 = select(better, sl2, sum_l2);
            changed = changed | better;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < N; ++i) l[i] = select(zero, Real(0), l[i]);
    return select(zero | ~(sum_l2 > Real(0)), Real(0), sum_lx / sum_l2);
}

}  // namespace
