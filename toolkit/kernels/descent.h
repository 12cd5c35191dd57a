// Two more searches of ggml's: Q3_K's coordinate descent, and the one for IQ4's uneven levels.

#pragma once

#include "search.h"

namespace {

// Levels from -4 to 3, each in turn moved to where it fits best, at most five times over. Leaves the levels in `l`.
// `sure` as elsewhere; zero groups have levels of -4, which are stored as 0.
template <int N> INLINE Real descend(const Real *x, Real *l, Mask &sure) {
    Real size, w[N], wx[N], sum_lx(0), sum_l2(0);
    const Real largest = extreme<N>(x, size, sure);
    const Mask zero = size < Real(SMALLEST);
    const Real iscale = Real(-4) / largest;
    for (int i = 0; i < N; ++i) {
        w[i] = x[i] * x[i];
        wx[i] = w[i] * x[i];
        l[i] = max(min(round(iscale * x[i]), Real(3)), Real(-4));
        sum_lx = sum_lx + wx[i] * l[i];
        sum_l2 = sum_l2 + w[i] * l[i] * l[i];
    }
    for (int again = 0; again < 5; ++again) {
        Mask changed = none();
        for (int i = 0; i < N; ++i) {
            const Real slx = sum_lx - wx[i] * l[i], sl2 = sum_l2 - w[i] * l[i] * l[i];
            // Certainly unchanged, by a margin far above the rounding errors: no division, and no waiting for it.
            const Real product = x[i] * sl2;
            const Mask up = (product >= (l[i] + Real(0.499f)) * slx) & (l[i] < Real(3));
            const Mask down = (product <= (l[i] - Real(0.499f)) * slx) & (l[i] > Real(-4));
            const Mask open = (slx > Real(0)) & ~zero;
            if (!any(open & (up | down))) continue;
            const Real next = real(clamped(nearest(product / slx), -4, 3));
            const Real new_slx = slx + wx[i] * next, new_sl2 = sl2 + w[i] * next * next;
            const Mask better = open & (next != l[i]) & (new_sl2 > Real(0)) &
                                (new_slx * new_slx * sum_l2 > sum_lx * sum_lx * new_sl2);
            l[i] = select(better, next, l[i]);
            sum_lx = select(better, new_slx, sum_lx);
            sum_l2 = select(better, new_sl2, sum_l2);
            changed = changed | better;
        }
        if (!any(changed)) break;
    }
    for (int i = 0; i < N; ++i) l[i] = select(zero, Real(-4), l[i]);
    sure = sure & (zero | (finite(sum_lx) & finite(sum_l2)));
    return select(zero | ~(sum_l2 > Real(0)), Real(0), sum_lx / sum_l2);
}

// IQ4's sixteen values, and the bounds between them: ggml takes the nearer of two neighbours, the upper one of equals,
// and compares differences that are exact there, so that is one comparison with the middle.
constexpr float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

INLINE constexpr float bound(int i) { return (VALUES[i - 1] + VALUES[i]) / 2; }

INLINE Real value_of(Real x) {
    Real value(VALUES[0]);
    for (int i = 1; i < 16; ++i) value = select(x >= Real(bound(i)), Real(VALUES[i]), value);
    return value;
}

template <class F> INLINE IntsOf<F> index_of(F x) {
    IntsOf<F> index{};
    for (int i = 1; i < 16; ++i) index -= x >= bound(i);
    return index;
}

// The scale for one group of 32, of 16 tries.
INLINE Slope fit_uneven(const Real *x, const Real *w) {
    Slope slope;
    Real size;
    const Real largest = extreme<32>(x, size, slope.sure);
    slope.zero = size < Real(SMALLEST);
    Real best(0);
    for (int attempt = -8; attempt <= 7; ++attempt) {
        // The first is ggml's starting point, 1 / (largest / 127), negated twice.
        const Real iscale =
            attempt == -8 ? Real(1) / (-largest / Real(VALUES[0])) : Real(attempt + VALUES[0]) / largest;
        Real sum_qx(0), sum_q2(0);
        for (int i = 0; i < 32; ++i) {
            const Real q = value_of(iscale * x[i]), wq = w[i] * q;
            sum_qx = sum_qx + wq * x[i];
            sum_q2 = sum_q2 + wq * q;
        }
        const Mask positive = sum_q2 > Real(0);
        if (attempt == -8) {
            slope.scale = select(positive, sum_qx / sum_q2, Real(0));
            best = slope.scale * sum_qx;
            continue;
        }
        const Mask better = positive & (sum_qx * sum_qx > best * sum_q2);
        if (any(better)) {
            slope.scale = select(better, sum_qx / sum_q2, slope.scale);
            best = select(better, slope.scale * sum_qx, best);
        }
    }
    slope.scale = select(slope.zero, Real(0), slope.scale);
    slope.sure = slope.sure & finite(slope.scale);
    return slope;
}

}  // namespace
