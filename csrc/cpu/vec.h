// A vector of fp32 lanes as wide as the instruction set that this file is compiled for, and the
// conversions of the three storage formats.
//
// Everything is in an anonymous namespace and no template of the standard library is used: the
// same source is compiled once per instruction set, and the linker would keep one copy of a shared
// function, perhaps the one in AVX-512 on a machine without it.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "chimed_types.h"

#define CHIMED_INLINE __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float F32 __attribute__((vector_size(kLanes * 4)));
typedef int32_t I32 __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U32 __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef uint8_t U8 __attribute__((vector_size(kLanes)));

constexpr float kInfinity = __builtin_huge_valf();

// How many lanes of a vector exist: all of them, or the first `count` at the end of a row.
struct All {};
struct First {
    int64_t count;
};

template <class Vector, class Element>
CHIMED_INLINE inline Vector load_bits(const Element* from, All) {
    Vector v;
    memcpy(&v, from, sizeof(v));
    return v;
}

template <class Vector, class Element>
CHIMED_INLINE inline Vector load_bits(const Element* from, First lanes) {
    Vector v = {};
    memcpy(&v, from, size_t(lanes.count) * sizeof(Element));
    return v;
}

template <class Vector, class Element>
CHIMED_INLINE inline void store_bits(Element* to, Vector v, All) {
    memcpy(to, &v, sizeof(v));
}

template <class Vector, class Element>
CHIMED_INLINE inline void store_bits(Element* to, Vector v, First lanes) {
    memcpy(to, &v, size_t(lanes.count) * sizeof(Element));
}

// A storage format: `Element`, widen (exact) and narrow (round to nearest even).
struct Float32 {
    using Element = float;
    using Bits = F32;
    static CHIMED_INLINE inline F32 widen(F32 bits) { return bits; }
    static CHIMED_INLINE inline F32 narrow(F32 v) { return v; }
};

// Zero extension and its inverse. GCC 12 splits __builtin_convertvector into halves.
#if defined(__AVX512F__)
CHIMED_INLINE inline U32 extend(U16 v) { return (U32)_mm512_cvtepu16_epi32((__m256i)v); }
CHIMED_INLINE inline U16 truncate(U32 v) { return (U16)_mm512_cvtepi32_epi16((__m512i)v); }
#elif defined(__AVX2__)
CHIMED_INLINE inline U32 extend(U16 v) { return (U32)_mm256_cvtepu16_epi32((__m128i)v); }
CHIMED_INLINE inline U16 truncate(U32 v) {
    const __m256i wide = (__m256i)v;
    return (U16)_mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
#else
CHIMED_INLINE inline U32 extend(U16 v) { return __builtin_convertvector(v, U32); }
CHIMED_INLINE inline U16 truncate(U32 v) { return __builtin_convertvector(v, U16); }
#endif

struct BFloat16 {
    using Element = uint16_t;
    using Bits = U16;
    static CHIMED_INLINE inline F32 widen(U16 bits) { return (F32)(extend(bits) << 16); }
    static CHIMED_INLINE inline U16 narrow(F32 v) {
        const U32 bits = (U32)v;
        const U32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
        // Rounding could carry a NaN's payload into infinity: a NaN stays a quiet NaN.
        const U32 safe = (v == v) ? rounded : (bits | 0x400000u);
        return truncate(safe >> 16);
    }
};

struct Float16 {
    using Element = uint16_t;
    using Bits = U16;
#if defined(__AVX512F__)
    static CHIMED_INLINE inline F32 widen(U16 bits) { return (F32)_mm512_cvtph_ps((__m256i)bits); }
    static CHIMED_INLINE inline U16 narrow(F32 v) {
        return (U16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
#elif defined(__AVX2__)
    static CHIMED_INLINE inline F32 widen(U16 bits) { return (F32)_mm256_cvtph_ps((__m128i)bits); }
    static CHIMED_INLINE inline U16 narrow(F32 v) {
        return (U16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
#else
    static CHIMED_INLINE inline F32 widen(U16 half) {
        const U32 bits = extend(half);
        const U32 magnitude = (bits & 0x7fffu) << 13;
        // The exponent is 112 too small; the product also turns subnormals into normals.
        const U32 finite = (U32)((F32)magnitude * 0x1p112f);
        const U32 value = (magnitude >= 0x0f800000u) ? (magnitude | 0x7f800000u) : finite;
        return (F32)(value | ((bits & 0x8000u) << 16));
    }
    static CHIMED_INLINE inline U16 narrow(F32 v) {
        const U32 bits = (U32)v;
        const U32 sign = (bits >> 16) & 0x8000u;
        const U32 magnitude = bits & 0x7fffffffu;
        const U32 normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
        // Adding 0.5 leaves the ten bits of a subnormal half at the end of the mantissa, rounded.
        const U32 tiny = (U32)((F32)magnitude + 0.5f) - 0x3f000000u;
        U32 half = (magnitude < 0x38800000u) ? tiny : normal;
        half = (magnitude >= 0x477ff000u) ? (U32{} + 0x7c00u) : half;  // from 65520: infinity
        half = (v == v) ? half : (U32{} + 0x7e00u);
        return truncate(half | sign);
    }
#endif
};

template <class Format, class Lanes>
CHIMED_INLINE inline F32 load(const typename Format::Element* from, Lanes lanes) {
    return Format::widen(load_bits<typename Format::Bits>(from, lanes));
}

template <class Format, class Lanes>
CHIMED_INLINE inline void store(typename Format::Element* to, F32 v, Lanes lanes) {
    store_bits(to, Format::narrow(v), lanes);
}

// The value that storing and loading again would give.
template <class Format>
CHIMED_INLINE inline F32 round_to(F32 v) {
    return Format::widen(Format::narrow(v));
}

CHIMED_INLINE inline F32 splat(float value) { return F32{} + value; }

// Lanes that do not exist take `fill`, e.g. what a maximum ignores.
CHIMED_INLINE inline F32 with_fill(F32 v, float, All) { return v; }
CHIMED_INLINE inline F32 with_fill(F32 v, float fill, First lanes) {
    for (int64_t k = lanes.count; k < kLanes; ++k) v[k] = fill;
    return v;
}

// Calls body(first element, lanes) over [0, n).
template <class Body>
CHIMED_INLINE inline void for_each_vector(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, All{});
    if (i < n) body(i, First{n - i});
}

CHIMED_INLINE inline float horizontal_sum(F32 v) {
    float lanes[kLanes];
    memcpy(lanes, &v, sizeof(v));
    for (int width = kLanes / 2; width; width /= 2)
        for (int k = 0; k < width; ++k) lanes[k] += lanes[k + width];
    return lanes[0];
}

// Sum over [0, n) of term(first element, lanes), in four chains: an addition takes four cycles.
// A term's missing lanes must be zero.
template <class Term>
CHIMED_INLINE inline float sum_over(int64_t n, Term term) {
    F32 a = {}, b = {}, c = {}, d = {};
    int64_t i = 0;
    for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
        a += term(i, All{});
        b += term(i + kLanes, All{});
        c += term(i + 2 * kLanes, All{});
        d += term(i + 3 * kLanes, All{});
    }
    for (; i + kLanes <= n; i += kLanes) a += term(i, All{});
    if (i < n) b += term(i, First{n - i});
    return horizontal_sum((a + b) + (c + d));
}

// Maximum over [0, n) of term(first element, lanes), -inf for n = 0; NaN is passed over.
template <class Term>
CHIMED_INLINE inline float max_over(int64_t n, Term term) {
    F32 a = splat(-kInfinity), b = a;
    const auto take = [](F32 best, F32 v) CHIMED_INLINE { return v > best ? v : best; };
    int64_t i = 0;
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
        a = take(a, term(i, All{}));
        b = take(b, term(i + kLanes, All{}));
    }
    for (; i + kLanes <= n; i += kLanes) a = take(a, term(i, All{}));
    if (i < n) b = take(b, with_fill(term(i, First{n - i}), -kInfinity, First{n - i}));
    a = take(a, b);
    float best = a[0];
    for (int k = 1; k < kLanes; ++k) best = a[k] > best ? a[k] : best;
    return best;
}

// exp(x), relative error below 2e-7; 0 under -87.3, 2.4e38 from 88.38 on; NaN stays NaN.
// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln(2) / 2, by a polynomial of degree seven.
CHIMED_INLINE inline F32 exp(F32 x) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x) in the low bits
    const F32 bounded = x > 88.37626f ? splat(88.37626f) : x;
    const F32 shifted = bounded * 1.44269504f + magic;
    const F32 n = shifted - magic;
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    // In pairs (Estrin), a chain of four products instead of six: the chain is what takes time.
    const F32 r2 = r * r;
    const F32 high = (r * 1.9875691500e-4f + 1.3981999507e-3f) * r2
                     + (r * 8.3334519073e-3f + 4.1665795894e-2f);
    const F32 low = r * 1.6666665459e-1f + 5.0000001201e-1f;
    const F32 p = (high * r2 + low) * r2 + (r + 1.0f);
    const F32 scale = (F32)(((U32)shifted << 23) + 0x3f800000u);
    return x < -87.3f ? F32{} : p * scale;
}

CHIMED_INLINE inline float exp(float x) { return exp(splat(x))[0]; }

CHIMED_INLINE inline F32 sqrt(F32 v) {
    F32 root;
    for (int k = 0; k < kLanes; ++k) root[k] = __builtin_sqrtf(v[k]);
    return root;
}

// Calls body(Format{}) for a ChimedDtype.
template <class Body>
CHIMED_INLINE inline void with_format(int dtype, Body body) {
    switch (dtype) {
        case CHIMED_F16: return body(Float16{});
        case CHIMED_BF16: return body(BFloat16{});
        default: return body(Float32{});
    }
}

}  // namespace
