// Blocks of 32: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, IQ4_NL. Bit layouts: ggml's block_q8_0 and so on.

#pragma once

#include "slopes.h"

namespace {

// 16 integers as bytes.
INLINE void narrow16(const Ints *from, uint8_t *to) {
#if defined(__AVX512F__)
    store(to, _mm512_cvtepi32_epi8((__m512i)from[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]);
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5);
    store(to, _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
#elif defined(__x86_64__)
    const __m128i a = _mm_packs_epi32((__m128i)from[0], (__m128i)from[1]);
    const __m128i b = _mm_packs_epi32((__m128i)from[2], (__m128i)from[3]);
    store(to, _mm_packus_epi16(a, b));
#else
    for (int i = 0; i < 16; ++i) to[i] = (uint8_t)from[i / WIDTH][i % WIDTH];
#endif
}

// The fifth bit of each of WIDTH integers.
INLINE uint32_t fifth(Ints l) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)l, _mm512_set1_epi32(16));
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)(l << 27));
#elif defined(__x86_64__)
    return (uint32_t)_mm_movemask_ps((__m128)(l << 27));
#else
    uint32_t found = 0;
    for (int i = 0; i < WIDTH; ++i) found |= (uint32_t)(l[i] >> 4 & 1) << i;
    return found;
#endif
}

// How Q4 and Q5 store the levels (0 or more) of 32 values: nibbles, the second half above the first; a fifth bit each.
template <int BITS> INLINE void pack_nibbles(const Ints *l, uint8_t *to) {
    Ints q[PER / 2];
    if (BITS == 5) {
        uint32_t high = 0;
        for (int i = 0; i < PER; ++i) high |= fifth(l[i]) << (i * WIDTH);
        memcpy(to, &high, 4);
    }
    for (int i = 0; i < PER / 2; ++i) {
        q[i] = BITS == 5 ? (l[i] & 15) | (l[i + PER / 2] & 15) << 4 : l[i] | l[i + PER / 2] << 4;
    }
    narrow16(q, BITS == 5 ? to + 4 : to);
}

// The even and the odd ones of each four values of a, then of b; the same of the fours themselves.
#if defined(__AVX512F__)
INLINE Floats evens(Floats a, Floats b) { return _mm512_shuffle_ps(a, b, 0x88); }
INLINE Floats odds(Floats a, Floats b) { return _mm512_shuffle_ps(a, b, 0xdd); }
INLINE Floats even_fours(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0x88); }
INLINE Floats odd_fours(Floats a, Floats b) { return _mm512_shuffle_f32x4(a, b, 0xdd); }
INLINE uint32_t disordered(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
#elif defined(__AVX2__)
INLINE Floats evens(Floats a, Floats b) { return _mm256_shuffle_ps(a, b, 0x88); }
INLINE Floats odds(Floats a, Floats b) { return _mm256_shuffle_ps(a, b, 0xdd); }
INLINE Floats even_fours(Floats a, Floats b) { return _mm256_permute2f128_ps(a, b, 0x20); }
INLINE Floats odd_fours(Floats a, Floats b) { return _mm256_permute2f128_ps(a, b, 0x31); }
INLINE Ints disordered(Floats a, Floats b) { return (Ints)_mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
#else
INLINE Floats evens(Floats a, Floats b) { return PICK(a, b, 0, 2, 4, 6); }
INLINE Floats odds(Floats a, Floats b) { return PICK(a, b, 1, 3, 5, 7); }
#if defined(__x86_64__)
INLINE Ints disordered(Floats a, Floats b) { return (Ints)_mm_cmpunord_ps(a, b); }
#else
INLINE Ints disordered(Floats a, Floats b) { return (a != a) | (b != b); }
#endif
#endif
INLINE bool some(uint32_t mask) { return mask; }

// Of four vectors to four values of one: of each vector the part that stands in the same four.
template <Floats (*with)(Floats, Floats)> INLINE Floats joined(Floats a, Floats b, Floats c, Floats d) {
    const Floats ab = with(evens(a, b), odds(a, b)), cd = with(evens(c, d), odds(c, d));
    return with(evens(ab, cd), odds(ab, cd));
}

// And of such vectors one value for each of WIDTH.
template <Floats (*with)(Floats, Floats)> INLINE Floats across(const Floats *v) {
#if defined(__AVX512F__)
    const Floats a = with(even_fours(v[0], v[1]), odd_fours(v[0], v[1]));
    const Floats b = with(even_fours(v[2], v[3]), odd_fours(v[2], v[3]));
    return with(even_fours(a, b), odd_fours(a, b));
#elif defined(__AVX2__)
    return with(even_fours(v[0], v[1]), odd_fours(v[0], v[1]));
#else
    return v[0];
#endif
}

// The smallest and the largest of each block's 32 values; false if there is NaN among them all.
INLINE bool ranges(const Batch &batch, Real &smallest, Real &largest) {
    auto mixed = disordered(Floats{}, Floats{});
    Floats lows[LANES / 4], highs[LANES / 4];
    for (int lane = 0; lane < LANES; lane += 4) {
        Floats low[4], high[4];
        for (int k = 0; k < 4; ++k) {
            const float *x = batch.rows[lane + k];
            low[k] = high[k] = load<Floats>(x);
            for (int i = 1; i < PER; ++i) {
                const Floats v = load<Floats>(x + i * WIDTH);
                if (i % 2) mixed |= disordered(load<Floats>(x + (i - 1) * WIDTH), v);
                low[k] = least(v, low[k]);
                high[k] = most(v, high[k]);
            }
        }
        lows[lane / 4] = joined<least>(low[0], low[1], low[2], low[3]);
        highs[lane / 4] = joined<most>(high[0], high[1], high[2], high[3]);
    }
    smallest = {across<least>(lows), across<least>(lows + WIDTH / 4)};
    largest = {across<most>(highs), across<most>(highs + WIDTH / 4)};
    return !some(mixed);
}

// Where `ranges` met NaN: in which blocks.
INLINE void unsure(Batch &batch) {
    for (int lane = 0; lane < batch.count; ++lane) {
        for (int i = 0; i < 32; ++i) {
            if (!(__builtin_fabsf(batch.rows[lane][i]) <= 3.402823466e38f)) batch.sure[lane] = 0;
        }
    }
}

// Round half away from zero, as roundf; |x| < 2^22.
INLINE Ints away(Floats x) {
    const Floats nudge = bits<Floats>(Ints((bits<Ints>(x) & (int32_t)0x80000000) | 0x3effffff));
    return __builtin_convertvector(x + nudge, Ints);
}

struct Q8_0 {
    static constexpr int BYTES = 34;
    static INLINE void quantize(Batch &batch) {
        float inverses[LANES];
        int32_t halves[LANES];
        Real low, high;
        const bool sound = ranges(batch, low, high);
        const Real d = abs(max(high, -low)) / Real(127);
        const Real inverse = inverted(d);
        const Mask sure = finite(d) & finite(inverse);
        store(inverses, inverse);
        store(halves, half(d));
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            put_half(out, halves[lane]);
            for (int i = 0; i < PER; ++i) {
                q[i] = away(load<Floats>(batch.rows[lane] + i * WIDTH) * inverses[lane]) & 255;
            }
            narrow(q, out + 2);
        }
        if (!sound) unsure(batch);
    }
};

// Q4_0 and Q5_0: the value of the largest magnitude becomes -TOP.
template <int BITS> struct Centred {
    static constexpr int TOP = 1 << (BITS - 1), BYTES = BITS == 4 ? 18 : 22;
    static INLINE void quantize(Batch &batch) { batch.weighted ? fitted(batch) : plain(batch); }

    static INLINE void plain(Batch &batch) {
        float inverses[LANES];
        int32_t halves[LANES];
        Real low, high;
        const bool sound = ranges(batch, low, high);
        if (any((high == -low) & (high != Real(0)))) {  // of equal magnitudes the first counts
            float lows[LANES], highs[LANES];
            store(lows, low);
            store(highs, high);
            for (int lane = 0; lane < LANES; ++lane) {
                const float *x = batch.rows[lane];
                if (highs[lane] != -lows[lane]) continue;
                int i = 0;
                while (i < 31 && x[i] != highs[lane] && x[i] != lows[lane]) ++i;
                highs[lane] = lows[lane] = x[i];
            }
            low = load<Real>(lows);
            high = load<Real>(highs);
        }
        const Real largest = select(abs(high) > abs(low), high, low);
        const Real d = select(largest != Real(0), largest, Real(0)) / Real(-TOP);  // -0 for zeros of any sign
        const Real inverse = inverted(d);
        const Mask sure = finite(d) & finite(inverse);
        store(inverses, inverse);
        store(halves, half(d));
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            for (int i = 0; i < PER; ++i) {
                const Floats v = load<Floats>(batch.rows[lane] + i * WIDTH) * inverses[lane] + (TOP + 0.5f);
                q[i] = __builtin_convertvector(least(v, (float)(2 * TOP - 1) - Floats{}), Ints);
            }
            put_half(out, halves[lane]);
            pack_nibbles<BITS>(q, out + 2);
        }
        if (!sound) unsure(batch);
    }

    static INLINE void fitted(Batch &batch) {
        Real x[32], w[32];
        Numbers iscale;
        Integers zero, halves;
        const Real variance = load<Real>(batch.squares);
        gather(batch.rows, 0, 32, x);
        weigh<32>(batch, 0, x, variance, w);
        const Slope slope = fit_slope<32>(x, w, TOP);
        iscale.put(0, slope.iscale);
        zero.put(0, slope.zero);
        halves.put(0, half(slope.scale));
        store(batch.sure, slope.sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            levels<32>(batch.rows[lane], 0, 0, iscale.real[0][lane], 0, -TOP, TOP - 1, TOP, q);
            if (zero.whole[0][lane]) memset(q, 0, sizeof q);
            put_half(out, halves.whole[0][lane]);
            pack_nibbles<BITS>(q, out + 2);
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
        float lows[LANES], inverses[LANES];
        int32_t halves[LANES];
        Real low, high;
        const bool sound = ranges(batch, low, high);
        store(lows, low);
        if (any(low == Real(0))) {  // of zeros the first counts: its sign is stored
            for (int lane = 0; lane < LANES; ++lane) {
                if (lows[lane] != 0) continue;
                const float *x = batch.rows[lane];
                int i = 0;
                while (i < 31 && x[i] != 0) ++i;
                lows[lane] = x[i];
            }
            low = load<Real>(lows);
        }
        const Real d = select(high == low, Real(0), (high - low) / Real(TOP));
        const Real inverse = inverted(d);
        const Mask sure = finite(low) & finite(d) & finite(inverse);
        store(inverses, inverse);
        const Whole scale = half(d), base = half(low);
        store(halves, Whole{scale.a | base.a << 16, scale.b | base.b << 16});
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            for (int i = 0; i < PER; ++i) {
                // Below TOP + 1, so nothing to clamp: 1 / d is finite, so d and it have 22 bits at the least.
                const Floats v = (load<Floats>(batch.rows[lane] + i * WIDTH) - lows[lane]) * inverses[lane] + 0.5f;
                q[i] = __builtin_convertvector(v, Ints);
            }
            memcpy(out, halves + lane, 4);
            pack_nibbles<BITS>(q, out + 4);
        }
        if (!sound) unsure(batch);
    }

    static INLINE void fitted(Batch &batch) {
        Real x[32], w[32];
        Numbers iscale, base;
        Integers halves;
        const Real variance = load<Real>(batch.squares);
        gather(batch.rows, 0, 32, x);
        weigh<32>(batch, 0, x, variance, w);
        const Line line = fit_line<32, TOP, false>(x, w, -0.9f, 0.05f, 36);
        const Mask sure = line.sure & finite(line.scale) & finite(line.low);
        iscale.put(0, line.iscale);
        base.put(0, line.base);
        halves.put(0, half(line.scale));
        halves.put(1, half(line.low));
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints q[PER];
            levels<32>(batch.rows[lane], 0, 0, iscale.real[0][lane], base.real[0][lane], 0, TOP, 0, q);
            put_half(out, halves.whole[0][lane]);
            put_half(out + 2, halves.whole[1][lane]);
            pack_nibbles<BITS>(q, out + 4);
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
        const Real inverse = inverted(slope.scale);
        const Mask sure = slope.sure & finite(inverse);
        inverses.put(0, inverse);
        halves.put(0, half(slope.scale));
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            put_half(out, halves.whole[0][lane]);
            pack_uneven(batch.rows[lane], inverses.real[0][lane], out + 2);
        }
    }
};

}  // namespace
