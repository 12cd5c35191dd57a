// Two more searches of ggml's: Q3_K's coordinate descent, and the one for IQ4's uneven levels.

#pragma once

#include "search.h"

namespace {

// Q3_K's: levels from -4 to 3 of groups of 16, each in turn moved to where it fits best, at most five times over.
//
// Of 16,384 groups of ordinary weights 8,244 can move at all, and 2,720, 679, 126 and 14 get to the rounds after the
// first. So a round takes those that moved in the round before, LANES at a time, whichever lanes they belong to.
struct Descent {
    static constexpr int GROUPS = 16 * LANES;  // group j of a lane: j * LANES + lane
    float sums_lx[GROUPS], sums_l2[GROUPS];
    int32_t first[GROUPS], second[GROUPS];  // eight levels each, 4 added: four bits for each, from the top
    int32_t moving[GROUPS];                 // which groups; the first `count`
    int32_t sure[LANES];
    int count = 0;

    // Fit all groups of the lanes' rows; `scale` one for each of 16. Zero groups have levels of -4, stored as 0.
    INLINE void fit(const float *const rows[LANES], Real *scale, Mask &certain) {
        store(sure, ~none());
        for (int j = 0; j < 16; ++j) start(rows, j);
        for (int again = 0; again < 5 && count; ++again) round_of(rows);
        const Whole left = load<Whole>(sure);
        certain = {left.a, left.b};
        for (int j = 0; j < 16; ++j) {
            const Real lx = load<Real>(sums_lx + j * LANES), l2 = load<Real>(sums_l2 + j * LANES);
            certain = certain & finite(lx) & finite(l2);
            scale[j] = select(l2 > Real(0), lx / l2, Real(0));
        }
    }

    INLINE int level(int j, int lane, int i) const {
        return (i < 8 ? first : second)[j * LANES + lane] >> (28 - i % 8 * 4) & 15;
    }

  private:
    static INLINE Whole pushed(Whole word, Real level) {
        const Whole last = whole(level + Real(4));
        return {word.a << 4 | last.a, word.b << 4 | last.b};
    }

    INLINE void start(const float *const rows[LANES], int j) {
        Real x[16], size, sum_lx(0), sum_l2(0);
        gather(rows, 16 * j, 16, x);
        Mask certain;
        const Real iscale = Real(-4) / extreme<16>(x, size, certain);
        const Mask zero = size < Real(SMALLEST);
        for (int half = 0; half < 2; ++half) {
            Whole word = {};
            for (int i = 8 * half; i < 8 * half + 8; ++i) {
                const Real w = x[i] * x[i], l = max(min(round(iscale * x[i]), Real(3)), Real(-4));
                sum_lx = sum_lx + w * x[i] * l;
                sum_l2 = sum_l2 + w * l * l;
                word = pushed(word, l);
            }
            store((half ? second : first) + j * LANES, Whole{zero.a ? Ints{} : word.a, zero.b ? Ints{} : word.b});
        }
        store(sums_lx + j * LANES, select(zero, Real(0), sum_lx));
        store(sums_l2 + j * LANES, select(zero, Real(0), sum_l2));
        const Whole before = load<Whole>(sure);
        store(sure, Whole{before.a & certain.a, before.b & certain.b});
        // A level moves only where the sum without it is above 0. All terms have the sign of `iscale` (or are 0), and
        // rounding is monotonic: a sum that is not above 0 is at most each of its terms, so nothing ever moves.
        int32_t able[LANES];
        store(able, (sum_lx > Real(0)) & ~zero);
        for (int lane = 0; lane < LANES; ++lane) {
            moving[count] = j * LANES + lane;
            count -= able[lane];
        }
    }

    INLINE void round_of(const float *const rows[LANES]) {
        const int before = count;
        count = 0;
        for (int from = 0; from < before; from += LANES) {
            const int here = before - from < LANES ? before - from : LANES;
            const float *at[LANES];
            int32_t group[LANES], words[2][LANES], changed[LANES], fine[LANES];
            float lx[LANES], l2[LANES];
            for (int k = 0; k < LANES; ++k) {
                const int g = group[k] = moving[from + (k < here ? k : 0)];  // lanes to spare do the first again
                at[k] = rows[g % LANES] + g / LANES * 16;
                words[0][k] = first[g], words[1][k] = second[g];
                lx[k] = sums_lx[g], l2[k] = sums_l2[g];
            }
            Real sum_lx = load<Real>(lx), sum_l2 = load<Real>(l2);
            Whole levels[2] = {load<Whole>(words[0]), load<Whole>(words[1])};
            Mask certain;
            store(changed, move(at, levels, sum_lx, sum_l2, certain));
            store(lx, sum_lx), store(l2, sum_l2), store(fine, certain);
            store(words[0], levels[0]), store(words[1], levels[1]);
            for (int k = 0; k < here; ++k) {
                const int g = group[k];
                first[g] = words[0][k], second[g] = words[1][k];
                sums_lx[g] = lx[k], sums_l2[g] = l2[k];
                sure[g % LANES] &= fine[k];
                moving[count] = g;
                count -= changed[k];
            }
        }
    }

    // One round over the 16 values at `at`; returns which of them changed.
    static INLINE Mask move(const float *const at[LANES], Whole *words, Real &sum_lx, Real &sum_l2, Mask &certain) {
        Real x[16], worst(0);
        gather(at, 0, 16, x);
        Ints changed[2] = {};
        for (int half = 0; half < 2; ++half) {
            Whole left = words[half], moved = {};
            for (int i = 8 * half; i < 8 * half + 8; ++i) {
                const Real l = real(Whole{left.a >> 28, left.b >> 28}) - Real(4);
                left = {left.a << 4, left.b << 4};
                const Real w = x[i] * x[i], wx = w * x[i];
                const Real slx = sum_lx - wx * l, sl2 = sum_l2 - w * l * l;
                const Real ratio = x[i] * sl2 / slx;
                const Mask open = slx > Real(0);
                worst = max(select(open, abs(ratio), Real(0)), worst);
                const Real next = round(max(min(ratio, Real(3)), Real(-4)));
                const Real new_slx = slx + wx * next, new_sl2 = sl2 + w * next * next;
                const Mask better = open & (next != l) & (new_sl2 > Real(0)) &
                                    (new_slx * new_slx * sum_l2 > sum_lx * sum_lx * new_sl2);
                sum_lx = select(better, new_slx, sum_lx);
                sum_l2 = select(better, new_sl2, sum_l2);
                moved = pushed(moved, select(better, next, l));
            }
            changed[0] |= moved.a ^ words[half].a, changed[1] |= moved.b ^ words[half].b;
            words[half] = moved;
        }
        certain = worst <= Real(ROUNDS);
        return {changed[0] != 0, changed[1] != 0};
    }
};

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
