// RMSNorm, alone or after a residual addition (Zhang and Sennrich, arXiv 1910.07467, eq. 4).
//
// A row is read twice, the second time from the first-level cache. The scaled value is rounded to
// the storage format before the weight is applied: LLaMA's order, which checkpoints rely on.
#pragma once

#include "vec.h"

namespace {

template <class Format>
void rms_norm_forward_rows(const void* x_, const void* residual_, const void* weight_, void* y_,
                           void* summed_, float* rstd, int64_t begin, int64_t end, int64_t h,
                           float eps) {
    using Element = typename Format::Element;
    const auto* weight = (const Element*)weight_;
    for (int64_t row = begin; row < end; ++row) {
        const Element* x = (const Element*)x_ + row * h;
        if (residual_) {
            const Element* residual = (const Element*)residual_ + row * h;
            Element* summed = (Element*)summed_ + row * h;
            for_each_vector(h, [&](int64_t i, auto lanes) CHIMED_INLINE {
                store<Format>(summed + i,
                              load<Format>(x + i, lanes) + load<Format>(residual + i, lanes),
                              lanes);
            });
            x = summed;
        }
        const float sum = sum_over(h, [&](int64_t i, auto lanes) CHIMED_INLINE {
            const F32 v = load<Format>(x + i, lanes);
            return v * v;
        });
        const float r = 1.0f / __builtin_sqrtf(sum / float(h) + eps);
        rstd[row] = r;
        Element* y = (Element*)y_ + row * h;
        for_each_vector(h, [&](int64_t i, auto lanes) CHIMED_INLINE {
            const F32 scaled = round_to<Format>(load<Format>(x + i, lanes) * r);
            store<Format>(y + i, scaled * load<Format>(weight + i, lanes), lanes);
        });
    }
}

// With n = x * rstd and g = dy * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(dy * n).
template <class Format>
void rms_norm_backward_rows(const void* dy_, const void* dsummed_, const void* x_,
                            const void* weight_, const float* rstd, void* dx_,
                            float* dweight_partial, int64_t begin, int64_t end, int64_t h) {
    using Element = typename Format::Element;
    const auto* weight = (const Element*)weight_;
    memset(dweight_partial, 0, size_t(h) * sizeof(float));
    for (int64_t row = begin; row < end; ++row) {
        const Element* x = (const Element*)x_ + row * h;
        const Element* dy = (const Element*)dy_ + row * h;
        const Element* dsummed = dsummed_ ? (const Element*)dsummed_ + row * h : nullptr;
        Element* dx = (Element*)dx_ + row * h;
        const float dot = sum_over(h, [&](int64_t i, auto lanes) CHIMED_INLINE {
            return load<Format>(dy + i, lanes) * load<Format>(weight + i, lanes)
                   * load<Format>(x + i, lanes);
        });
        const float r = rstd[row];
        const float shrink = dot * r * r * r / float(h);
        for_each_vector(h, [&](int64_t i, auto lanes) CHIMED_INLINE {
            const F32 gradient = load<Format>(dy + i, lanes);
            const F32 input = load<Format>(x + i, lanes);
            F32 d = gradient * load<Format>(weight + i, lanes) * r - input * shrink;
            if (dsummed) d += load<Format>(dsummed + i, lanes);
            store<Format>(dx + i, d, lanes);
            store<Float32>(dweight_partial + i,
                           load<Float32>(dweight_partial + i, lanes) + gradient * (input * r),
                           lanes);
        });
    }
}

void rms_norm_forward(int dtype, const void* x, const void* residual, const void* weight, void* y,
                      void* summed, float* rstd, int64_t begin, int64_t end, int64_t h,
                      float eps) {
    with_format(dtype, [&](auto format) {
        rms_norm_forward_rows<decltype(format)>(x, residual, weight, y, summed, rstd, begin, end,
                                                h, eps);
    });
}

void rms_norm_backward(int dtype, const void* dy, const void* dsummed, const void* x,
                       const void* weight, const float* rstd, void* dx, float* dweight_partial,
                       int64_t begin, int64_t end, int64_t h) {
    with_format(dtype, [&](auto format) {
        rms_norm_backward_rows<decltype(format)>(dy, dsummed, x, weight, rstd, dx,
                                                 dweight_partial, begin, end, h);
    });
}

void sum_partials(int dtype, const float* partials, void* out, int64_t num_partials,
                  int64_t begin, int64_t end, int64_t h) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        auto* column = (typename Format::Element*)out + begin;
        for_each_vector(end - begin, [&](int64_t i, auto lanes) CHIMED_INLINE {
            F32 sum = {};
            for (int64_t n = 0; n < num_partials; ++n)
                sum += load<Float32>(partials + n * h + begin + i, lanes);
            store<Format>(column + i, sum, lanes);
        });
    });
}

}  // namespace
