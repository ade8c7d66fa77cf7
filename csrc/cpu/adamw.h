// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) with the gradient's scale and the
// low-precision copy folded in.
#pragma once

#include "op.h"

struct AdamWKernels {
    // Elements [begin, end) of one tensor; copy (may be null) gets param in copy_dtype.
    void (*step)(int grad_dtype, int copy_dtype, float* param, const void* grad, float* exp_avg,
                 float* exp_avg_sq, void* copy, int64_t begin, int64_t end,
                 const ChimedAdamW* settings);
};
CHIMED_CPU_KERNELS(AdamWKernels, adamw)

#ifndef CHIMED_BINDING

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

}  // namespace

const AdamWKernels CHIMED_TABLE(adamw) = {adamw};

#else

namespace chimed {
namespace {

void adamw_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
            const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
            const std::vector<Tensor>& copies, double lr, double beta1, double beta2, double eps,
            double weight_decay, int64_t step, double grad_scale) {
    const size_t count = params.size();
    require(grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count
                && (copies.empty() || copies.size() == count),
            "adamw_ needs lists of one length");
    const ChimedAdamW settings =
        adamw_scalars(lr, beta1, beta2, eps, weight_decay, step, grad_scale);
    for (size_t n = 0; n < count; ++n) {
        const int64_t size = params[n].numel();
        const bool has_copy = !copies.empty();
        require_fp32(params[n], size);
        require_fp32(exp_avgs[n], size);
        require_fp32(exp_avg_sqs[n], size);
        require_dense(grads[n]);
        require(grads[n].numel() == size, "a gradient must have its parameter's shape");
        if (has_copy) {
            require_dense(copies[n]);
            require(copies[n].numel() == size, "a copy must have its parameter's shape");
        }
        const int grad_dtype = dtype_of(grads[n]);
        const int copy_dtype = has_copy ? dtype_of(copies[n]) : int(CHIMED_F32);
        parallel_for(0, size, kGrain, [&](int64_t begin, int64_t end) {
            adamw_kernels().step(grad_dtype, copy_dtype, out<float>(params[n]), in(grads[n]),
                                 out<float>(exp_avgs[n]), out<float>(exp_avg_sqs[n]),
                                 has_copy ? out(copies[n]) : nullptr, begin, end, &settings);
        });
    }
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace chimed

#endif
