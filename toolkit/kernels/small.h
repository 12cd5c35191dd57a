// Blocks of 32: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL. Bit layouts: ggml's block_q8_0 and so on.

#pragma once

#include "slopes.h"

namespace {

// How Q4 and Q5 store the levels of 32 values: low nibbles, the second half above the first; a fifth bit each.
template <int BITS> INLINE void pack_nibbles(const uint8_t *l, uint8_t *to) {
    uint8_t *low = BITS == 5 ? to + 4 : to;
    if (BITS == 5) {
        uint32_t high = 0;
        for (int i = 0; i < 32; ++i) high |= (uint32_t)(l[i] >> 4) << i;
        memcpy(to, &high, 4);
    }
    for (int i = 0; i < 16; ++i) low[i] = (uint8_t)((l[i] & 15) | (l[i + 16] & 15) << 4);
}

// The smallest and the largest of 32 values, the first of equals (the sign of a zero counts); false if one is NaN.
INLINE bool range(const float *x, float &smallest, float &largest) {
    Floats low = load<Floats>(x), high = low;
    Ints odd = low != low;
    for (int i = 1; i < PER; ++i) {
        const Floats v = load<Floats>(x + i * WIDTH);
        low = least(v, low);
        high = most(v, high);
        odd |= v != v;
    }
    smallest = low[0], largest = high[0];
    for (int i = 1; i < WIDTH; ++i) {
        smallest = low[i] < smallest ? low[i] : smallest;
        largest = high[i] > largest ? high[i] : largest;
    }
    if (smallest == 0) {
        for (int i = 31; i >= 0; --i) smallest = x[i] == 0 ? x[i] : smallest;
    }
    return !some(odd);
}

// Round half away from zero, as roundf; |x| < 2^22.
INLINE Ints away(Floats x) {
    const Floats nudge = bits<Floats>(Ints((bits<Ints>(x) & (int32_t)0x80000000) | 0x3effffff));
    return __builtin_convertvector(x + nudge, Ints);
}

struct Q8_0 {
    static constexpr int BYTES = 34;
    static INLINE void quantize(Batch &batch) {
        float sizes[LANES], inverses[LANES];
        int32_t halves[LANES];
        bool sound[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            float low, high;
            sound[lane] = range(batch.rows[lane], low, high);
            sizes[lane] = high > -low ? high : -low;
        }
        const Real size = {load<Floats>(sizes), load<Floats>(sizes + WIDTH)};
        const Real d = magnitude_of(size) / Real(127);
        const Real inverse = select(d != Real(0), Real(1) / d, Real(0));
        const Mask sure = finite(d) & finite(inverse);
        store(inverses, inverse);
        store(halves, half(d));
        store(batch.sure, Whole{sure.a, sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            put_half(out, halves[lane]);
            for (int i = 0; i < PER; ++i) q[i] = away(load<Floats>(batch.rows[lane] + i * WIDTH) * inverses[lane]);
            narrow_signed(q, out + 2);
            if (!sound[lane]) batch.sure[lane] = 0;
        }
    }
    static INLINE Real magnitude_of(Real x) { return abs(x); }
    static INLINE void narrow_signed(Ints *q, uint8_t *to) {
        for (int i = 0; i < PER; ++i) q[i] &= 255;
        narrow(q, to);
    }
};

// Q4_0 and Q5_0: the value of the largest magnitude becomes -TOP.
template <int BITS> struct Centred {
    static constexpr int TOP = 1 << (BITS - 1), BYTES = BITS == 4 ? 18 : 22;
    static INLINE void quantize(Batch &batch) { batch.weighted ? fitted(batch) : plain(batch); }

    static INLINE void plain(Batch &batch) {
        float extremes[LANES], inverses[LANES];
        int32_t halves[LANES];
        bool sound[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) {
            const float *x = batch.rows[lane];
            float low, high;
            sound[lane] = range(x, low, high);
            extremes[lane] = high > -low ? high : low;
            if (high == -low) {
                extremes[lane] = 0;  // all zero, or both signs: the first counts
                for (int i = 31; i >= 0 && high != 0; --i) {
                    extremes[lane] = x[i] == high || x[i] == low ? x[i] : extremes[lane];
                }
            }
        }
        const Real d = Real{load<Floats>(extremes), load<Floats>(extremes + WIDTH)} / Real(-TOP);
        const Real inverse = select(d != Real(0), Real(1) / d, Real(0));
        const Mask sure = finite(d) & finite(inverse);
        store(inverses, inverse);
        store(halves, half(d));
        store(batch.sure, Whole{sure.a, sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES, l[32];
            Ints q[PER];
            for (int i = 0; i < PER; ++i) {
                const Floats v = load<Floats>(batch.rows[lane] + i * WIDTH) * inverses[lane] + (TOP + 0.5f);
                q[i] = __builtin_convertvector(v, Ints);
                q[i] = q[i] > 2 * TOP - 1 ? 2 * TOP - 1 - Ints{} : q[i];
            }
            narrow(q, l);
            put_half(out, halves[lane]);
            pack_nibbles<BITS>(l, out + 2);
            if (!sound[lane]) batch.sure[lane] = 0;
        }
    }

    static INLINE void fitted(Batch &batch) {
        Real x[32], w[32];
        Numbers iscale;
        Integers zero, halves;
        const Real variance = {load<Floats>(batch.squares), load<Floats>(batch.squares + WIDTH)};
        gather(batch.rows, 0, 32, x);
        weigh<32>(batch, 0, x, variance, w);
        const Slope slope = fit_slope<32>(x, w, TOP);
        iscale.put(0, slope.iscale);
        zero.put(0, Whole{slope.zero.a, slope.zero.b});
        halves.put(0, half(slope.scale));
        store(batch.sure, Whole{slope.sure.a, slope.sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES, l[32];
            Ints q[PER];
            levels<32>(batch.rows[lane], 0, 0, iscale.real[0][lane], 0, -TOP, TOP - 1, TOP, q);
            narrow(q, l);
            if (zero.whole[0][lane]) memset(l, 0, 32);
            put_half(out, halves.whole[0][lane]);
            pack_nibbles<BITS>(l, out + 2);
        }
    }
};
using Q4_0 = Centred<4>;
using Q5_0 = Centred<5>;

// Q4_1 and Q5_1: levels from the smallest value up.
template <int BITS> struct Raised {
    static constexpr int TOP = (1 << BITS) - 1, BYTES = BITS == 4 ? 20 : 24;
    static INLINE void quantize(Batch &batch) { batch.weighted ? fitted(batch) : plain(batch); }

    static INLINE void plain(Batch &batch) {
        float lows[LANES], highs[LANES], inverses[LANES];
        int32_t halves[LANES], minima[LANES];
        bool sound[LANES] = {};
        for (int lane = 0; lane < LANES; ++lane) sound[lane] = range(batch.rows[lane], lows[lane], highs[lane]);
        const Real low = {load<Floats>(lows), load<Floats>(lows + WIDTH)};
        const Real high = {load<Floats>(highs), load<Floats>(highs + WIDTH)};
        const Real d = select(high == low, Real(0), (high - low) / Real(TOP));
        const Real inverse = select(d != Real(0), Real(1) / d, Real(0));
        const Mask sure = finite(low) & finite(d) & finite(inverse);
        store(inverses, inverse);
        store(halves, half(d));
        store(minima, half(low));
        store(batch.sure, Whole{sure.a, sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES, l[32];
            Ints q[PER];
            for (int i = 0; i < PER; ++i) {
                const Floats v = (load<Floats>(batch.rows[lane] + i * WIDTH) - lows[lane]) * inverses[lane] + 0.5f;
                q[i] = __builtin_convertvector(v, Ints);
                if (BITS == 4) q[i] = q[i] > TOP ? TOP - Ints{} : q[i];
            }
            narrow(q, l);
            put_half(out, halves[lane]);
            put_half(out + 2, minima[lane]);
            pack_nibbles<BITS>(l, out + 4);
            if (!sound[lane]) batch.sure[lane] = 0;
        }
    }

    static INLINE void fitted(Batch &batch) {
        Real x[32], w[32];
        Numbers iscale, base;
        Integers halves;
        const Real variance = {load<Floats>(batch.squares), load<Floats>(batch.squares + WIDTH)};
        gather(batch.rows, 0, 32, x);
        weigh<32>(batch, 0, x, variance, w);
        const Line line = fit_line<32, TOP, false>(x, w, -0.9f, 0.05f, 36);
        const Mask sure = line.sure & finite(line.scale) & finite(line.low);
        iscale.put(0, line.iscale);
        base.put(0, line.base);
        halves.put(0, half(line.scale));
        halves.put(1, half(line.low));
        store(batch.sure, Whole{sure.a, sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES, l[32];
            Ints q[PER];
            levels<32>(batch.rows[lane], 0, 0, iscale.real[0][lane], base.real[0][lane], 0, TOP, 0, q);
            narrow(q, l);
            put_half(out, halves.whole[0][lane]);
            put_half(out + 2, halves.whole[1][lane]);
            pack_nibbles<BITS>(l, out + 4);
        }
    }
};
using Q4_1 = Raised<4>;
using Q5_1 = Raised<5>;

struct IQ4_NL {
    static constexpr int BYTES = 18;
    static INLINE void quantize(Batch &batch) {
        Real x[32], w[32];
        Numbers inverses;
        Integers halves;
        gather(batch.rows, 0, 32, x);
        if (batch.weighted) {
            Real variance(0);
            for (int i = 0; i < 32; ++i) variance = variance + x[i] * x[i];
            weigh<32>(batch, 0, x, variance * Real(2.0f / 32), w);
        } else {
            for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
        }
        const Slope slope = fit_uneven(x, w);
        const Real inverse = select(slope.scale != Real(0), Real(1) / slope.scale, Real(0));
        const Mask sure = slope.sure & finite(inverse);
        inverses.put(0, inverse);
        halves.put(0, half(slope.scale));
        store(batch.sure, Whole{sure.a, sure.b});
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            put_half(out, halves.whole[0][lane]);
            pack_uneven(batch.rows[lane], inverses.real[0][lane], out + 2);
        }
    }
};

}  // namespace
