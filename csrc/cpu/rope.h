// Rotary position embedding in LLaMA's half-split convention: element i of a head turns with
// element i + d/2 (Su et al., arXiv 2104.09864, eq. 34). The inverse turn is the backward pass.
#pragma once

#include "vec.h"

namespace {

void rope(int dtype, const void* x, void* out, const float* cos, const float* sin, int64_t begin,
          int64_t end, int64_t n, int64_t d, int64_t token_stride, int inverse) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        const int64_t half = d / 2;
        const float direction = inverse ? -1.0f : 1.0f;
        for (int64_t token = begin; token < end; ++token) {
            const float* c = cos + token * half;
            const float* s = sin + token * half;
            for (int64_t head = 0; head < n; ++head) {
                const Element* from = (const Element*)x + token * token_stride + head * d;
                Element* to = (Element*)out + (token * n + head) * d;
                for_each_vector(half, [&](int64_t i, auto lanes) CHIMED_INLINE {
                    const F32 first = load<Format>(from + i, lanes);
                    const F32 second = load<Format>(from + half + i, lanes);
                    const F32 cosine = load<Float32>(c + i, lanes);
                    const F32 sine = load<Float32>(s + i, lanes) * direction;
                    store<Format>(to + i, first * cosine - second * sine, lanes);
                    store<Format>(to + half + i, second * cosine + first * sine, lanes);
                });
            }
        }
    });
}

}  // namespace
