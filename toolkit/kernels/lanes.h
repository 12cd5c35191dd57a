// Lanes: the same scalar arithmetic on many independent blocks at once.
//
// A `Real` is a float for each of LANES blocks, in two vectors of the machine's width: two, because one alone would
// wait for its own additions. Every operation is the IEEE one of the scalar code, in the order in which it is written
// (compile with -ffp-contract=off), so a lane ends with exactly the bits that the scalar code ends with.

#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
constexpr int LANES = 2 * WIDTH;

#define INLINE inline __attribute__((always_inline))

template <int N> struct Of {
    typedef float Floats __attribute__((vector_size(4 * N)));
    typedef int32_t Ints __attribute__((vector_size(4 * N)));
    typedef uint16_t Shorts __attribute__((vector_size(2 * N)));
    typedef uint8_t Bytes __attribute__((vector_size(N)));
};
using Floats = Of<WIDTH>::Floats;
using Ints = Of<WIDTH>::Ints;
using Four = Of<4>::Floats;

template <class To, class From> INLINE To bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Any address will do.
template <class V> INLINE V load(const void *from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <class V> INLINE void store(void *to, const V &value) { __builtin_memcpy(to, &value, sizeof value); }

// minps and maxps are `a < b ? a : b` and `a > b ? a : b`, second operand for NaN and equal zeros.
#if defined(__AVX512F__)
INLINE Floats least(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats most(Floats a, Floats b) { return _mm512_max_ps(a, b); }
INLINE Floats to_even(Floats a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Floats root(Floats a) { return _mm512_sqrt_ps(a); }
INLINE bool some(Ints mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask); }
INLINE bool every(Ints mask) { return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) == 0xffff; }
#elif defined(__AVX2__)
INLINE Floats least(Floats a, Floats b) { return _mm256_min_ps(a, b); }
INLINE Floats most(Floats a, Floats b) { return _mm256_max_ps(a, b); }
INLINE Floats to_even(Floats a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Floats root(Floats a) { return _mm256_sqrt_ps(a); }
INLINE bool some(Ints mask) { return _mm256_movemask_ps((__m256)mask); }
INLINE bool every(Ints mask) { return _mm256_movemask_ps((__m256)mask) == 0xff; }
#else
#if defined(__x86_64__)
INLINE Floats least(Floats a, Floats b) { return _mm_min_ps(a, b); }
INLINE Floats most(Floats a, Floats b) { return _mm_max_ps(a, b); }
INLINE Floats root(Floats a) { return _mm_sqrt_ps(a); }
INLINE bool some(Ints mask) { return _mm_movemask_ps((__m128)mask); }
INLINE bool every(Ints mask) { return _mm_movemask_ps((__m128)mask) == 0xf; }
#else
INLINE Floats least(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats most(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats root(Floats a) {
    for (int i = 0; i < WIDTH; ++i) a[i] = __builtin_sqrtf(a[i]);
    return a;
}
INLINE bool some(Ints mask) { return mask[0] | mask[1] | mask[2] | mask[3]; }
INLINE bool every(Ints mask) { return mask[0] & mask[1] & mask[2] & mask[3]; }
#endif
// Adding 1.5 * 2^23 leaves no room for a fraction: the nearest integer, ties to even, up to |a| = 2^22 - 1.
INLINE Floats to_even(Floats a) { return (a + 12582912.0f) - 12582912.0f; }
#endif

// bfloat16 is the upper half of a float32.
INLINE Ints widened(const uint8_t *from) {
#if defined(__AVX512F__)
    return (Ints)_mm512_cvtepu16_epi32(load<__m256i>(from)) << 16;
#elif defined(__AVX2__)
    return (Ints)_mm256_cvtepu16_epi32(load<__m128i>(from)) << 16;
#else
    return __builtin_convertvector(load<Of<WIDTH>::Shorts>(from), Ints) << 16;
#endif
}

struct Mask {
    Ints a, b;
};
struct Whole {
    Ints a, b;
};
struct Real {
    Floats a, b;
    Real() = default;
    INLINE Real(Floats a, Floats b) : a(a), b(b) {}
    INLINE Real(float one) : a(one - Floats{}), b(one - Floats{}) {}  // not `+`: -0 would become +0
};

// Vector by vector: copied whole they go through memory in pieces.
template <> INLINE Real load<Real>(const void *from) {
    const auto *at = static_cast<const Floats *>(from);
    return {load<Floats>(at), load<Floats>(at + 1)};
}
template <> INLINE Whole load<Whole>(const void *from) {
    const auto *at = static_cast<const Ints *>(from);
    return {load<Ints>(at), load<Ints>(at + 1)};
}
INLINE void store(void *to, Real x) { store(to, x.a), store(static_cast<Floats *>(to) + 1, x.b); }
INLINE void store(void *to, Whole x) { store(to, x.a), store(static_cast<Ints *>(to) + 1, x.b); }
INLINE void store(void *to, Mask x) { store(to, Whole{x.a, x.b}); }

INLINE Real operator+(Real x, Real y) { return {x.a + y.a, x.b + y.b}; }
INLINE Real operator-(Real x, Real y) { return {x.a - y.a, x.b - y.b}; }
INLINE Real operator*(Real x, Real y) { return {x.a * y.a, x.b * y.b}; }
INLINE Real operator/(Real x, Real y) { return {x.a / y.a, x.b / y.b}; }
INLINE Real operator-(Real x) { return {-x.a, -x.b}; }
INLINE Mask operator<(Real x, Real y) { return {x.a < y.a, x.b < y.b}; }
INLINE Mask operator>(Real x, Real y) { return {x.a > y.a, x.b > y.b}; }
INLINE Mask operator<=(Real x, Real y) { return {x.a <= y.a, x.b <= y.b}; }
INLINE Mask operator>=(Real x, Real y) { return {x.a >= y.a, x.b >= y.b}; }
INLINE Mask operator==(Real x, Real y) { return {x.a == y.a, x.b == y.b}; }
INLINE Mask operator!=(Real x, Real y) { return {x.a != y.a, x.b != y.b}; }
INLINE Mask operator&(Mask x, Mask y) { return {x.a & y.a, x.b & y.b}; }
INLINE Mask operator|(Mask x, Mask y) { return {x.a | y.a, x.b | y.b}; }
INLINE Mask operator~(Mask x) { return {~x.a, ~x.b}; }
INLINE Real select(Mask which, Real x, Real y) { return {which.a ? x.a : y.a, which.b ? x.b : y.b}; }
INLINE Real min(Real x, Real y) { return {least(x.a, y.a), least(x.b, y.b)}; }  // x < y ? x : y
INLINE Real max(Real x, Real y) { return {most(x.a, y.a), most(x.b, y.b)}; }    // x > y ? x : y
INLINE Real sqrt(Real x) { return {root(x.a), root(x.b)}; }
INLINE Real round(Real x) { return {to_even(x.a), to_even(x.b)}; }  // within ±4194303
INLINE bool any(Mask x) { return some(x.a | x.b); }
INLINE bool all(Mask x) { return every(x.a & x.b); }
INLINE Mask none() { return {Ints{}, Ints{}}; }

template <class F> using IntsOf = decltype(F{} < F{});

template <class F> INLINE F magnitude(F x) { return bits<F>(bits<IntsOf<F>>(x) & 0x7fffffff); }
INLINE Real abs(Real x) { return {magnitude(x.a), magnitude(x.b)}; }
INLINE Real inverted(Real x) { return select(x != Real(0), Real(1) / x, Real(0)); }
INLINE Mask finite(Real x) { return abs(x) <= 3.402823466e38f; }

// ggml's nearest integer, bit for bit whatever x is.
template <class F> INLINE IntsOf<F> nearest(F x) {
    return (bits<IntsOf<F>>(F(x + 12582912.0f)) & 0x007fffff) - 0x00400000;
}
INLINE Whole nearest(Real x) { return {nearest(x.a), nearest(x.b)}; }

template <class I> INLINE I clamped(I x, int low, int high) {
    x = x < low ? low - I{} : x;
    return x > high ? high - I{} : x;
}
INLINE Whole clamped(Whole x, int low, int high) { return {clamped(x.a, low, high), clamped(x.b, low, high)}; }
INLINE Real real(Whole x) { return {__builtin_convertvector(x.a, Floats), __builtin_convertvector(x.b, Floats)}; }
INLINE Whole whole(Real x) { return {__builtin_convertvector(x.a, Ints), __builtin_convertvector(x.b, Ints)}; }

// float16 as integers: ggml's conversion (ties to even), which scales so that float32's own rounding does it.
template <class F> INLINE IntsOf<F> half(F x) {
    using I = IntsOf<F>;
    const I word = bits<I>(x), sign = word & (int32_t)0x80000000;
    const F base = (magnitude(x) * 0x1p+112f) * 0x1p-110f;
    I bias = word & 0x7f800000;
    bias = bias < 0x38800000 ? 0x38800000 - I{} : bias;
    const I sum = bits<I>(F(bits<F>(I(bias + 0x07800000)) + base));
    const I number = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
    return ((sign >> 16) & 0x8000) | ((word & 0x7fffffff) > 0x7f800000 ? 0x7e00 - I{} : number);
}
INLINE Whole half(Real x) { return {half(x.a), half(x.b)}; }

// The float16 of |x| < 65520 back as float32, exactly (subnormals too: the product is exact).
template <class I> INLINE Floats from_half(I h) {
    return bits<Floats>(bits<Ints>(Floats(bits<Floats>(I((h & 0x7fff) << 13)) * 0x1p+112f)) | ((h & 0x8000) << 16));
}
INLINE Real from_half(Whole h) { return {from_half(h.a), from_half(h.b)}; }

#if defined(__clang__)
#define PICK(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
#define PICK(x, y, i, j, k, l) __builtin_shuffle(x, y, Of<4>::Ints{i, j, k, l})
#endif

// Take `count` values (a multiple of 4) of each lane's row, from `first` on, value by value: out[i] has every lane's.
INLINE void gather(const float *const rows[LANES], ptrdiff_t first, int count, Real *out) {
    float *to = reinterpret_cast<float *>(out);
    for (int lane = 0; lane < LANES; lane += 4) {
        for (int i = 0; i < count; i += 4) {
            const Four p = load<Four>(rows[lane] + first + i), q = load<Four>(rows[lane + 1] + first + i);
            const Four r = load<Four>(rows[lane + 2] + first + i), s = load<Four>(rows[lane + 3] + first + i);
            const Four pq = PICK(p, q, 0, 4, 1, 5), rs = PICK(r, s, 0, 4, 1, 5);
            const Four PQ = PICK(p, q, 2, 6, 3, 7), RS = PICK(r, s, 2, 6, 3, 7);
            store(to + i * LANES + lane, Four(PICK(pq, rs, 0, 1, 4, 5)));
            store(to + (i + 1) * LANES + lane, Four(PICK(pq, rs, 2, 3, 6, 7)));
            store(to + (i + 2) * LANES + lane, Four(PICK(PQ, RS, 0, 1, 4, 5)));
            store(to + (i + 3) * LANES + lane, Four(PICK(PQ, RS, 2, 3, 6, 7)));
        }
    }
}

}  // namespace
