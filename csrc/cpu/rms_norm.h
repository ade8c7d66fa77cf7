// RMSNorm, alone or after a residual addition (Zhang and Sennrich, arXiv 1910.07467, eq. 4).
//
// A row is read twice, the second time from the first-level cache. The scaled value is rounded to
// the storage format before the weight is applied: LLaMA's order, which checkpoints rely on.
#pragma once

#include "op.h"

struct RMSNormKernels {
    // y = (x * rstd) * weight; rstd = 1 / sqrt(mean(x^2) + eps), fp32 [T]. With a residual:
    // summed = x + residual is written and normalised instead of x; both may be null.
    void (*forward)(int dtype, const void* x, const void* residual, const void* weight, void* y,
                    void* summed, float* rstd, int64_t begin, int64_t end, int64_t h, float eps);
    // dweight_partial: fp32 [h], overwritten by the sum over these rows. dsummed (may be null) is
    // the gradient that reaches the sum beside the norm; it is added to dx.
    void (*backward)(int dtype, const void* dy, const void* dsummed, const void* x,
                     const void* weight, const float* rstd, void* dx, float* dweight_partial,
                     int64_t begin, int64_t end, int64_t h);
    // out[begin:end] = sum over n of partials[n, begin:end]; partials fp32 [n, h], out of dtype.
    void (*sum_partials)(int dtype, const float* partials, void* out, int64_t num_partials,
                         int64_t begin, int64_t end, int64_t h);
};
CHIMED_CPU_KERNELS(RMSNormKernels, rms_norm)

#ifndef CHIMED_BINDING

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

const RMSNormKernels CHIMED_TABLE(rms_norm) = {rms_norm_forward, rms_norm_backward, sum_partials};

#else

namespace chimed {
namespace {

std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x, const Tensor* residual,
                                                const Tensor& weight, double eps) {
    const int64_t rows = rows_of(x), h = width_of(x);
    require_dense(x);
    require_weight(weight, x);
    if (residual) require_twins(x, *residual);
    const int dtype = dtype_of(x);
    Tensor y = empty_like(x), summed = residual ? empty_like(x) : x, rstd = fp32_like(x, {rows});
    parallel_for(0, rows, grain(h), [&](int64_t begin, int64_t end) {
        rms_norm_kernels().forward(dtype, in(x), residual ? in(*residual) : nullptr, in(weight),
                                   out(y), out(summed), out<float>(rstd), begin, end, h,
                                   float(eps));
    });
    return {y, summed, rstd};
}

std::tuple<Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor* dsummed, const Tensor& x,
                                         const Tensor& weight, const Tensor& rstd) {
    const int64_t rows = rows_of(x), h = width_of(x);
    require_twins(dy, x);
    if (dsummed) require_twins(*dsummed, x);
    require_weight(weight, x);
    require_fp32(rstd, rows);
    // At most 64 blocks of at least 32 rows, each with its own partial sum of dweight.
    const int64_t block = std::max<int64_t>(32, (rows + 63) / 64);
    const int64_t num_blocks = (rows + block - 1) / block;
    const int dtype = dtype_of(x);
    Tensor dx = empty_like(x), dweight = empty_like(weight),
           partials = fp32_like(x, {num_blocks, h});
    parallel_for(0, num_blocks, std::max<int64_t>(1, grain(h) / block),
                 [&](int64_t first, int64_t last) {
                     for (int64_t n = first; n < last; ++n) {
                         rms_norm_kernels().backward(
                             dtype, in(dy), dsummed ? in(*dsummed) : nullptr, in(x), in(weight),
                             in<float>(rstd), out(dx), out<float>(partials) + n * h, n * block,
                             std::min(rows, (n + 1) * block), h);
                     }
                 });
    parallel_for(0, h, grain(num_blocks), [&](int64_t begin, int64_t end) {
        rms_norm_kernels().sum_partials(dtype, in<float>(partials), out(dweight), num_blocks, begin,
                                        end, h);
    });
    return {dx, dweight};
}

#include "../bind/norm_ops.h"  // the four ops, by these two functions

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("rms_norm_forward", TORCH_BOX(&rms_norm_forward));
    m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
    m.impl("add_rms_norm_forward", TORCH_BOX(&add_rms_norm_forward));
    m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
}

}  // namespace chimed

#endif
