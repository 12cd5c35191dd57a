// Super-blocks of 256: Q2_K to Q6_K and IQ4_XS. Bit layouts: ggml's block_q2_K to block_q6_K and block_iq4_xs.

#pragma once

#include <string.h>

#include "descent.h"

namespace {

// LANES blocks at once: where each one's values (and importance, or null) are, and where the first one's bytes go.
struct Batch {
    const float *rows[LANES];
    const float *importance[LANES];
    bool weighted;
    int count;       // lanes beyond it hold zeros and write nothing
    float squares[LANES];  // sums over each one's whole row, for the types that weigh by it
    uint8_t *out;
    int32_t sure[LANES];  // out: 0 where the fast path is not proven
};

// Ordered sums of squares of each lane's `count` values.
INLINE Real squares(const float *const rows[LANES], ptrdiff_t first, int count, Real sum) {
    Real x[32];
    for (int i = 0; i < count; i += 32) {
        gather(rows, first + i, 32, x);
        for (int k = 0; k < 32; ++k) sum = sum + x[k] * x[k];
    }
    return sum;
}

template <int N> INLINE void weigh(const Batch &batch, int first, const Real *x, Real variance, Real *w) {
    gather(batch.importance, first, N, w);
    for (int i = 0; i < N; ++i) w[i] = w[i] * sqrt(variance + x[i] * x[i]);
}

// The levels of N values of a block, in their own order: nearest((x + low) / d); what the search left where d is 0.
template <int N>
INLINE void levels(const float *x, float d, float low, float iscale, float base, int from, int to, int add, Ints *out) {
    for (int i = 0; i < N / WIDTH; ++i) {
        const Floats v = load<Floats>(x + i * WIDTH);
        const Ints l = d != 0 ? nearest(Floats((v + low) / d)) : nearest(Floats(iscale * (v - base)));
        out[i] = clamped(l, from, to) + add;
    }
}

// 32 integers as bytes.
INLINE void narrow(const Ints *from, uint8_t *to) {
#if defined(__AVX512F__)
    for (int i = 0; i < 2; ++i) store(to + 16 * i, _mm512_cvtepi32_epi8((__m512i)from[i]));
#elif defined(__AVX2__)
    const __m256i a = _mm256_packs_epi32((__m256i)from[0], (__m256i)from[1]);
    const __m256i b = _mm256_packs_epi32((__m256i)from[2], (__m256i)from[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    store(to, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
#elif defined(__x86_64__)
    for (int i = 0; i < 2; ++i) {
        const __m128i a = _mm_packs_epi32((__m128i)from[4 * i], (__m128i)from[4 * i + 1]);
        const __m128i b = _mm_packs_epi32((__m128i)from[4 * i + 2], (__m128i)from[4 * i + 3]);
        store(to + 16 * i, _mm_packus_epi16(a, b));
    }
#else
    for (int i = 0; i < 32; ++i) to[i] = (uint8_t)from[i / WIDTH][i % WIDTH];
#endif
}

constexpr int PER = 32 / WIDTH;  // vectors in 32 values

struct Numbers {
    float real[16][LANES];
    INLINE void put(int j, Real x) { store(real[j], x); }
};
struct Integers {
    int32_t whole[16][LANES];
    INLINE void put(int j, Whole x) { store(whole[j], x); }
    INLINE void put(int j, Mask x) { store(whole[j], x); }
};

INLINE void put_half(uint8_t *to, int32_t h) {
    const uint16_t stored = (uint16_t)h;
    memcpy(to, &stored, 2);
}

// Six-bit scales and minima of eight groups in twelve bytes.
INLINE void pack_scales(const Integers &scales, const Integers &lows, int lane, uint8_t *to) {
    for (int j = 0; j < 4; ++j) {
        const int s = scales.whole[j][lane], m = lows.whole[j][lane];
        const int S = scales.whole[j + 4][lane], M = lows.whole[j + 4][lane];
        to[j] = (uint8_t)(s | (S >> 4) << 6);
        to[j + 4] = (uint8_t)(m | (M >> 4) << 6);
        to[j + 8] = (uint8_t)((S & 15) | (M & 15) << 4);
    }
}

// What the types of the form scale * level + low have in common: a search for each group, then scales of the scales.
template <int GROUPS, int TOP, int SCALES> struct Lines {
    static constexpr int SIZE = 256 / GROUPS;
    Numbers d, low, iscale, base;
    Integers scales, lows, halves;  // halves: those of d and of the minimum

    INLINE void fit(Batch &batch, float first, float step, int steps) {
        Real x[SIZE], w[SIZE], scale[16], minimum[16], weight[16];
        Mask sure = ~none();
        Real variance(0);
        if (batch.weighted) {
            variance = squares(batch.rows, 0, 256, Real(0));
            variance = GROUPS == 8 ? Real(2) * variance / Real(256) : variance / Real(256);
            first = -0.9f, step = 0.05f, steps = 36;
        }
        for (int j = 0; j < GROUPS; ++j) {
            gather(batch.rows, j * SIZE, SIZE, x);
            if (batch.weighted) {
                weigh<SIZE>(batch, j * SIZE, x, variance, w);
            } else {
                Real average(0);
                if (GROUPS == 8) {
                    for (int i = 0; i < SIZE; ++i) average = average + x[i] * x[i];
                    average = sqrt(average / Real(SIZE));
                }
                for (int i = 0; i < SIZE; ++i) w[i] = GROUPS == 8 ? average + abs(x[i]) : abs(x[i]);
            }
            const Line line = GROUPS == 8 || batch.weighted ? fit_line<SIZE, TOP, false>(x, w, first, step, steps)
                                                            : fit_line<SIZE, TOP, true>(x, w, first, step, steps);
            scale[j] = line.scale;
            minimum[j] = -line.low;
            weight[j] = line.weight;
            iscale.put(j, line.iscale);
            base.put(j, line.base);
            sure = sure & line.sure;
        }
        settle(batch.weighted, scale, weight, scales, d, 0, sure);
        settle(batch.weighted, minimum, weight, lows, low, 1, sure);
        store(batch.sure, sure);
    }

    // Quantize the groups' scales (or minima): their levels, and the values that these stand for.
    INLINE void settle(bool weighted, Real *fitted, Real *weight, Integers &levels, Numbers &values, int which,
                       Mask &sure) {
        Whole stored[16];
        Real unit;
        if (weighted) {
            Real l[16];
            unit = fit_scales<GROUPS>(fitted, weight, SCALES, l, sure);
            for (int j = 0; j < GROUPS; ++j) stored[j] = whole(l[j]);
        } else {
            Real largest(0);
            for (int j = 0; j < GROUPS; ++j) {
                largest = max(fitted[j], largest);
                sure = sure & finite(fitted[j]);
            }
            const Real inverse = select(largest > Real(0), Real(SCALES) / largest, Real(0));
            for (int j = 0; j < GROUPS; ++j) {
                // ggml's levels are bytes: negative ones wrap. No rows are known that lead there.
                sure = sure & (fitted[j] >= Real(0)) & (inverse * fitted[j] <= Real(SCALES + 0.495f));
                stored[j] = nearest(inverse * fitted[j]);
            }
            unit = largest / Real(SCALES);
        }
        const Whole h = half(unit);
        sure = sure & (abs(unit) <= Real(65504));
        halves.put(which, h);
        const Real rounded = from_half(h);
        for (int j = 0; j < GROUPS; ++j) {
            levels.put(j, stored[j]);
            values.put(j, rounded * real(stored[j]));
        }
    }

    INLINE void levels_of(const Batch &batch, int lane, Ints *out) const {
        for (int j = 0; j < GROUPS; ++j) {
            levels<SIZE>(batch.rows[lane] + j * SIZE, d.real[j][lane], low.real[j][lane], iscale.real[j][lane],
                         base.real[j][lane], 0, TOP, 0, out + j * SIZE / WIDTH);
        }
    }

    // How Q4_K and Q5_K begin: the scales' and the minima's scale, and their levels.
    INLINE void pack_head(int lane, uint8_t *out) const {
        put_half(out, halves.whole[0][lane]);
        put_half(out + 2, halves.whole[1][lane]);
        pack_scales(scales, lows, lane, out + 4);
    }
};

struct Q4_K {
    static constexpr int BYTES = 144;
    static INLINE void quantize(Batch &batch) {
        Lines<8, 15, 63> found;
        found.fit(batch, -1.0f, 0.1f, 20);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints l[256 / WIDTH], q[PER];
            found.levels_of(batch, lane, l);
            found.pack_head(lane, out);
            for (int j = 0; j < 4; ++j) {
                for (int i = 0; i < PER; ++i) q[i] = l[2 * j * PER + i] | l[(2 * j + 1) * PER + i] << 4;
                narrow(q, out + 16 + 32 * j);
            }
        }
    }
};

struct Q5_K {
    static constexpr int BYTES = 176;
    static INLINE void quantize(Batch &batch) {
        Lines<8, 31, 63> found;
        found.fit(batch, -0.5f, 0.1f, 15);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints l[256 / WIDTH], q[PER], high[PER] = {};
            found.levels_of(batch, lane, l);
            found.pack_head(lane, out);
            for (int j = 0; j < 4; ++j) {
                for (int i = 0; i < PER; ++i) {
                    const Ints one = l[2 * j * PER + i], other = l[(2 * j + 1) * PER + i];
                    q[i] = (one & 15) | (other & 15) << 4;
                    high[i] |= (one >> 4) << (2 * j) | (other >> 4) << (2 * j + 1);
                }
                narrow(q, out + 48 + 32 * j);
            }
            narrow(high, out + 16);
        }
    }
};

// Two bits of each of four groups of 32.
INLINE void pack_pairs(const Ints *l, int shift, int mask, uint8_t *to) {
    for (int j = 0; j < 2; ++j) {
        Ints q[PER];
        for (int i = 0; i < PER; ++i) {
            q[i] = Ints{};
            for (int k = 0; k < 4; ++k) q[i] |= ((l[(4 * j + k) * PER + i] >> shift) & mask) << (2 * k);
        }
        narrow(q, to + 32 * j);
    }
}

struct Q2_K {
    static constexpr int BYTES = 84;
    static INLINE void quantize(Batch &batch) {
        Lines<16, 3, 15> found;
        found.fit(batch, -0.5f, 0.1f, 15);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints l[256 / WIDTH];
            found.levels_of(batch, lane, l);
            for (int j = 0; j < 16; ++j) {
                out[j] = (uint8_t)(found.scales.whole[j][lane] | found.lows.whole[j][lane] << 4);
            }
            pack_pairs(l, 0, 3, out + 16);
            put_half(out + 80, found.halves.whole[0][lane]);
            put_half(out + 82, found.halves.whole[1][lane]);
        }
    }
};

}  // namespace
