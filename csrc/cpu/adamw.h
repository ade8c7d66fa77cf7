// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with the gradient's scale and the
// low-precision copy folded in, and the sum of squares behind a gradient norm.
#pragma once

#include "vec.h"

namespace {

void adamw(int grad_dtype, int copy_dtype, float* param, const void* grad, float* exp_avg,
           float* exp_avg_sq, void* copy, int64_t begin, int64_t end, const ChimedAdamW* settings) {
    const ChimedAdamW& s = *settings;
    const float keep = float(1.0 - s.lr * s.weight_decay);
    const float step_size = float(s.lr / s.bias_correction1);
    const float root_correction = float(1.0 / __builtin_sqrt(s.bias_correction2));
    const float eps = float(s.eps), grad_scale = float(s.grad_scale);
    const float beta2 = float(s.beta2);
    const float rest1 = float(1.0 - s.beta1), rest2 = float(1.0 - s.beta2);
    with_format(grad_dtype, [&](auto grad_format) {
        using Grad = decltype(grad_format);
        with_format(copy_dtype, [&](auto copy_format) {
            using Copy = decltype(copy_format);
            const auto* g_ = (const typename Grad::Element*)grad + begin;
            auto* c_ = copy ? (typename Copy::Element*)copy + begin : nullptr;
            float *p_ = param + begin, *m_ = exp_avg + begin, *v_ = exp_avg_sq + begin;
            for_each_vector(end - begin, [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 g = load<Grad>(g_ + i, lanes) * grad_scale;
                F32 m = load<Float32>(m_ + i, lanes);
                F32 v = load<Float32>(v_ + i, lanes);
                m += rest1 * (g - m);
                v = beta2 * v + rest2 * (g * g);
                const F32 root = sqrt(v) * root_correction + eps;
                const F32 p = load<Float32>(p_ + i, lanes) * keep - step_size * (m / root);
                store<Float32>(m_ + i, m, lanes);
                store<Float32>(v_ + i, v, lanes);
                store<Float32>(p_ + i, p, lanes);
                if (c_) store<Copy>(c_ + i, p, lanes);
            });
        });
    });
}

double sum_of_squares(int dtype, const void* x, int64_t begin, int64_t end) {
    // Blocks of 4096 in fp32 (64 additions a lane), the blocks in double.
    constexpr int64_t kBlock = 4096;
    double total = 0.0;
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        for (int64_t start = begin; start < end; start += kBlock) {
            const auto* from = (const typename Format::Element*)x + start;
            const int64_t size = end - start < kBlock ? end - start : kBlock;
            total += sum_over(size, [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 v = load<Format>(from + i, lanes);
                return v * v;
            });
        }
    });
    return total;
}

}  // namespace
