// SwiGLU: silu(gate) * up (Shazeer, arXiv 2002.05202, eq. 6). Backward recomputes the sigmoid, so
// that only the input is kept.
#pragma once

#include "vec.h"

namespace {

CHIMED_INLINE inline F32 sigmoid(F32 x) { return 1.0f / (1.0f + exp(-x)); }

void swiglu_forward(int dtype, const void* gate_up, void* y, int64_t begin, int64_t end,
                    int64_t f) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        for (int64_t row = begin; row < end; ++row) {
            const Element* gate = (const Element*)gate_up + row * 2 * f;
            const Element* up = gate + f;
            Element* out = (Element*)y + row * f;
            for_each_vector(f, [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 g = load<Format>(gate + i, lanes);
                store<Format>(out + i, g * sigmoid(g) * load<Format>(up + i, lanes), lanes);
            });
        }
    });
}

void swiglu_backward(int dtype, const void* dy, const void* gate_up, void* dgate_up,
                     int64_t begin, int64_t end, int64_t f) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        for (int64_t row = begin; row < end; ++row) {
            const Element* gate = (const Element*)gate_up + row * 2 * f;
            const Element* up = gate + f;
            const Element* upstream = (const Element*)dy + row * f;
            Element* dgate = (Element*)dgate_up + row * 2 * f;
            Element* dup = dgate + f;
            for_each_vector(f, [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 g = load<Format>(gate + i, lanes);
                const F32 d = load<Format>(upstream + i, lanes);
                const F32 s = sigmoid(g);
                const F32 silu = g * s;
                const F32 slope = s + silu * (1.0f - s);
                store<Format>(dgate + i, d * load<Format>(up + i, lanes) * slope, lanes);
                store<Format>(dup + i, d * silu, lanes);
            });
        }
    });
}

}  // namespace
