// SwiGLU: silu(gate) * up (Shazeer, arXiv 2002.05202, eq. 6). Backward recomputes the sigmoid, so
// that only the input is kept.
#pragma once

#include "op.h"

struct SwiGLUKernels {
    // gate_up [T, 2f], gate first; y [T, f] = silu(gate) * up.
    void (*forward)(int dtype, const void* gate_up, void* y, int64_t begin, int64_t end, int64_t f);
    void (*backward)(int dtype, const void* dy, const void* gate_up, void* dgate_up, int64_t begin,
                     int64_t end, int64_t f);
};
CHIMED_CPU_KERNELS(SwiGLUKernels, swiglu)

#ifndef CHIMED_BINDING

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

const SwiGLUKernels CHIMED_TABLE(swiglu) = {swiglu_forward, swiglu_backward};

#else

namespace chimed {
namespace {

Tensor swiglu_forward(const Tensor& gate_up) {
    const int64_t rows = rows_of(gate_up), f = width_of(gate_up) / 2;
    require_dense(gate_up);
    require(width_of(gate_up) % 2 == 0, "gate_up must have an even width");
    const int dtype = dtype_of(gate_up);
    Tensor y = with_width(gate_up, f);
    parallel_for(0, rows, grain(f), [&](int64_t begin, int64_t end) {
        swiglu_kernels().forward(dtype, in(gate_up), out(y), begin, end, f);
    });
    return y;
}

Tensor swiglu_backward(const Tensor& dy, const Tensor& gate_up) {
    const int64_t rows = rows_of(gate_up), f = width_of(gate_up) / 2;
    require_dense(dy);
    require_dense(gate_up);
    require(dy.scalar_type() == gate_up.scalar_type() && dy.numel() == rows * f,
            "dy must have half the width of gate_up and its dtype");
    const int dtype = dtype_of(gate_up);
    Tensor dgate_up = empty_like(gate_up);
    parallel_for(0, rows, grain(f), [&](int64_t begin, int64_t end) {
        swiglu_kernels().backward(dtype, in(dy), in(gate_up), out(dgate_up), begin, end, f);
    });
    return dgate_up;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("swiglu_forward", TORCH_BOX(&swiglu_forward));
    m.impl("swiglu_backward", TORCH_BOX(&swiglu_backward));
}

}  // namespace chimed

#endif
