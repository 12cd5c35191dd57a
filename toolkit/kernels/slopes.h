// Super-blocks of the form scale * level: Q6_K, Q3_K, IQ4_XS.

#pragma once

#include "blocks.h"

namespace {

INLINE Real first_extreme(const Real *x, int count, Real &size) {
    Real largest(0);
    size = Real(0);
    for (int j = 0; j < count; ++j) {
        const Real magnitude = abs(x[j]);
        const Mask more = magnitude > size;
        size = select(more, magnitude, size);
        largest = select(more, x[j], largest);
    }
    return largest;
}

struct Q6_K {
    static constexpr int BYTES = 210;
    static INLINE void quantize(Batch &batch) {
        Real x[16], w[16], scale[16], size;
        Numbers d, iscale;
        Integers scales, zero, empty, halves;
        Mask sure = ~none();
        for (int j = 0; j < 16; ++j) {
            gather(batch.rows, 16 * j, 16, x);
            if (batch.weighted) gather(batch.importance, 16 * j, 16, w);
            for (int i = 0; i < 16; ++i) w[i] = batch.weighted ? w[i] : x[i] * x[i];
            const Slope slope = fit_slope<16>(x, w, 32);
            scale[j] = slope.scale;
            iscale.put(j, slope.iscale);
            zero.put(j, slope.zero);
            sure = sure & slope.sure;
        }
        const Real inverse = Real(-128) / first_extreme(scale, 16, size);
        const Mask nothing = size < Real(SMALLEST);
        const Real unit = Real(1) / inverse;
        sure = sure & (nothing | (abs(unit) <= Real(65504)));
        empty.put(0, nothing);
        const Whole h = half(unit);
        halves.put(0, h);
        for (int j = 0; j < 16; ++j) {
            const Whole l = nearest(inverse * scale[j]);
            scales.put(j, Whole{l.a > 127 ? 127 - Ints{} : l.a, l.b > 127 ? 127 - Ints{} : l.b});
            d.put(j, from_half(h) * real(Whole{(l.a > 127 ? 127 - Ints{} : l.a), (l.b > 127 ? 127 - Ints{} : l.b)}));
        }
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            if (empty.whole[0][lane]) {
                memset(out, 0, BYTES);
                continue;
            }
            Ints l[256 / WIDTH], q[PER];
            for (int j = 0; j < 16; ++j) {
                Ints *to = l + 16 * j / WIDTH;
                levels<16>(batch.rows[lane] + 16 * j, d.real[j][lane], 0, iscale.real[j][lane], 0, -32, 31, 32, to);
                if (zero.whole[j][lane]) memset(to, 0, 16 * sizeof(int32_t));
                out[192 + j] = (uint8_t)scales.whole[j][lane];
            }
            for (int j = 0; j < 2; ++j) {
                for (int k = 0; k < 2; ++k) {
                    for (int i = 0; i < PER; ++i) {
                        q[i] = (l[(4 * j + k) * PER + i] & 15) | (l[(4 * j + k + 2) * PER + i] & 15) << 4;
                    }
                    narrow(q, out + 64 * j + 32 * k);
                }
            }
            pack_pairs(l, 4, 3, out + 128);
            put_half(out + 208, halves.whole[0][lane]);
        }
    }
};

struct Q3_K {
    static constexpr int BYTES = 110;
    static INLINE void quantize(Batch &batch) {
        Real x[16], w[16], scale[16], weight[16], unit;
        Numbers d, iscale;
        Integers scales, zero, halves;
        Descent descent;
        Mask sure = ~none();
        if (batch.weighted) {
            const Real variance = Real(2) * squares(batch.rows, 0, 256, Real(0)) / Real(256);
            for (int j = 0; j < 16; ++j) {
                gather(batch.rows, 16 * j, 16, x);
                weigh<16>(batch, 16 * j, x, variance, w);
                weight[j] = Real(0);
                for (int i = 0; i < 16; ++i) weight[j] = weight[j] + w[i];
                const Slope slope = fit_slope<16>(x, w, 4);
                scale[j] = slope.scale;
                iscale.put(j, slope.iscale);
                zero.put(j, slope.zero);
                sure = sure & slope.sure & finite(weight[j]);
            }
            const Slope slope = fit_slope<16>(scale, weight, 32);
            sure = sure & slope.sure;
            unit = slope.scale;
            for (int j = 0; j < 16; ++j) {
                const Whole l = clamped(nearest(slope.iscale * scale[j]), -32, 31);
                scales.put(j, Whole{slope.zero.a ? -32 - Ints{} : l.a, slope.zero.b ? -32 - Ints{} : l.b});
            }
        } else {
            Real size;
            descent.fit(batch.rows, scale, sure);
            for (int j = 0; j < 16; ++j) sure = sure & finite(scale[j]);
            const Real largest = first_extreme(scale, 16, size);
            const Mask some = largest != Real(0);
            const Real inverse = Real(-32) / largest;
            unit = select(some, Real(1) / inverse, Real(0));
            sure = sure & (~some | (abs(inverse * largest) <= Real(33)));
            for (int j = 0; j < 16; ++j) {
                const Whole l = clamped(nearest(inverse * scale[j]), -32, 31);
                scales.put(j, Whole{some.a ? l.a : -32 - Ints{}, some.b ? l.b : -32 - Ints{}});
            }
        }
        sure = sure & (abs(unit) <= Real(65504));
        const Whole h = half(unit);
        halves.put(0, h);
        for (int j = 0; j < 16; ++j) {
            d.put(j, from_half(h) * real(load<Whole>(scales.whole[j])));
        }
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            Ints l[256 / WIDTH], high[PER] = {};
            for (int j = 0; j < 16; ++j) {
                Ints *to = l + 16 * j / WIDTH;
                if (d.real[j][lane] == 0 && !batch.weighted) {
                    int32_t plain[16];
                    for (int i = 0; i < 16; ++i) plain[i] = descent.level(j, lane, i);
                    memcpy(to, plain, sizeof plain);
                    continue;
                }
                levels<16>(batch.rows[lane] + 16 * j, d.real[j][lane], 0, iscale.real[j][lane], 0, -4, 3, 4, to);
                if (d.real[j][lane] == 0 && zero.whole[j][lane]) memset(to, 0, 16 * sizeof(int32_t));
            }
            for (int k = 0; k < 8; ++k) {
                for (int i = 0; i < PER; ++i) high[i] |= (l[k * PER + i] >> 2) << k;
            }
            narrow(high, out);
            pack_pairs(l, 0, 3, out + 32);
            for (int j = 0; j < 4; ++j) {
                int s[4];
                for (int k = 0; k < 4; ++k) s[k] = scales.whole[j + 4 * k][lane] + 32;
                out[96 + j] = (uint8_t)((s[0] & 15) | (s[2] & 15) << 4);
                out[100 + j] = (uint8_t)((s[1] & 15) | (s[3] & 15) << 4);
                out[104 + j] = (uint8_t)(s[0] >> 4 | s[1] >> 4 << 2 | s[2] >> 4 << 4 | s[3] >> 4 << 6);
            }
            put_half(out + 108, halves.whole[0][lane]);
        }
    }
};

// The indices of 32 values, the second half beside the first.
INLINE void pack_uneven(const float *x, float inverse, uint8_t *to) {
    Ints l[PER];
    uint8_t index[32];
    for (int i = 0; i < PER; ++i) l[i] = index_of(Floats(inverse * load<Floats>(x + i * WIDTH)));
    narrow(l, index);
    for (int i = 0; i < 16; ++i) to[i] = (uint8_t)(index[i] | index[i + 16] << 4);
}

struct IQ4_XS {
    static constexpr int BYTES = 136;
    static INLINE void quantize(Batch &batch) {
        Real x[32], w[32], scale[16], variance(0), size;
        Numbers inverses;
        Integers scales, halves;
        Mask sure = ~none();
        if (batch.weighted) variance = squares(batch.rows, 0, 256, Real(0)) * Real(2.0f / 256);
        for (int j = 0; j < 8; ++j) {
            gather(batch.rows, 32 * j, 32, x);
            if (batch.weighted) {
                weigh<32>(batch, 32 * j, x, variance, w);
            } else {
                for (int i = 0; i < 32; ++i) w[i] = x[i] * x[i];
            }
            const Slope slope = fit_uneven(x, w);
            scale[j] = slope.scale;
            sure = sure & slope.sure;
        }
        const Real unit = -first_extreme(scale, 8, size) / Real(32);
        const Real inverse = inverted(unit);
        sure = sure & finite(unit) & finite(inverse);
        halves.put(0, half(unit));
        for (int j = 0; j < 8; ++j) {
            const Whole l = clamped(nearest(inverse * scale[j]), -32, 31);
            const Real inverse_d = inverted(unit * real(l));
            sure = sure & finite(inverse_d);
            inverses.put(j, inverse_d);
            scales.put(j, l);
        }
        store(batch.sure, sure);
        for (int lane = 0; lane < batch.count; ++lane) {
            uint8_t *out = batch.out + lane * BYTES;
            int high = 0, s[8];
            for (int j = 0; j < 8; ++j) {
                s[j] = scales.whole[j][lane] + 32;
                high |= s[j] >> 4 << (2 * j);
                pack_uneven(batch.rows[lane] + 32 * j, inverses.real[j][lane], out + 8 + 16 * j);
            }
            put_half(out, halves.whole[0][lane]);
            put_half(out + 2, high);
            for (int j = 0; j < 4; ++j) out[4 + j] = (uint8_t)((s[2 * j] & 15) | (s[2 * j + 1] & 15) << 4);
        }
    }
};

}  // namespace
