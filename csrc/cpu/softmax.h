// Attention's scaled masked softmax.
#pragma once

#include "op.h"

struct SoftmaxKernels {
    // x [b, n, sq, sk], rows = b * n * sq; mask bool [b or 1, 1, sq, sk] or null, true = masked;
    // mask_period: rows of x per mask image (n * sq), or 0 for one mask for all.
    void (*forward)(int dtype, const void* x, const uint8_t* mask, void* y, int64_t begin,
                    int64_t end, int64_t sq, int64_t sk, int64_t mask_period, float scale,
                    int causal);
    // dx = scale * y * (dy - sum(dy * y))
    void (*backward)(int dtype, const void* dy, const void* y, void* dx, int64_t begin, int64_t end,
                     int64_t sk, float scale);
};
CHIMED_CPU_KERNELS(SoftmaxKernels, softmax)

#ifndef CHIMED_BINDING

#include "online_softmax.h"

namespace {

void softmax_forward(int dtype, const void* x, const uint8_t* mask, void* y, int64_t begin,
                     int64_t end, int64_t sq, int64_t sk, int64_t mask_period, float scale,
                     int causal) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        for (int64_t row = begin; row < end; ++row) {
            const Element* from = (const Element*)x + row * sk;
            Element* to = (Element*)y + row * sk;
            const int64_t query = row % sq;
            const int64_t image = mask_period ? row / mask_period : 0;
            const uint8_t* hidden = mask ? mask + (image * sq + query) * sk : nullptr;
            // The last query sees all keys, each earlier one a key less.
            const int64_t reach = query + 1 + sk - sq;
            const int64_t live = !causal ? sk : reach < 0 ? 0 : reach;
            const auto read = [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 score = load<Format>(from + i, lanes) * scale;
                if (!hidden) return score;
                const I32 masked = __builtin_convertvector(load_bits<U8>(hidden + i, lanes), I32);
                return masked != 0 ? splat(-kInfinity) : score;
            };
            const RowStats stats = row_stats(live, read);
            const float shift = stats.max == -kInfinity ? 0.0f : stats.max;
            const float norm = stats.sum == 0.0f ? 0.0f : 1.0f / stats.sum;
            for_each_vector(live, [&](int64_t i, auto lanes) CHIMED_INLINE {
                store<Format>(to + i, exp(read(i, lanes) - shift) * norm, lanes);
            });
            memset(to + live, 0, size_t(sk - live) * sizeof(Element));
        }
    });
}

void softmax_backward(int dtype, const void* dy, const void* y, void* dx, int64_t begin,
                      int64_t end, int64_t sk, float scale) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        for (int64_t row = begin; row < end; ++row) {
            const Element* upstream = (const Element*)dy + row * sk;
            const Element* output = (const Element*)y + row * sk;
            Element* to = (Element*)dx + row * sk;
            const float dot = sum_over(sk, [&](int64_t i, auto lanes) CHIMED_INLINE {
                return load<Format>(upstream + i, lanes) * load<Format>(output + i, lanes);
            });
            for_each_vector(sk, [&](int64_t i, auto lanes) CHIMED_INLINE {
                const F32 p = load<Format>(output + i, lanes);
                const F32 d = load<Format>(upstream + i, lanes);
                store<Format>(to + i, scale * p * (d - dot), lanes);
            });
        }
    });
}

}  // namespace

const SoftmaxKernels CHIMED_TABLE(softmax) = {softmax_forward, softmax_backward};

#else

namespace chimed {
namespace {

Tensor scaled_masked_softmax_forward(const Tensor& x, const std::optional<Tensor>& mask,
                                     double scale, bool causal) {
    require_dense(x);
    require(x.dim() == 4, "x must be [b, n, sq, sk]");
    const int64_t sq = x.size(2), sk = x.size(3), rows = rows_of(x);
    const int64_t period = mask ? mask_period(*mask, x) : 0;
    const int dtype = dtype_of(x);
    Tensor y = empty_like(x);
    parallel_for(0, rows, grain(sk), [&](int64_t begin, int64_t end) {
        softmax_kernels().forward(dtype, in(x), mask ? in<uint8_t>(*mask) : nullptr, out(y), begin,
                                  end, sq, sk, period, float(scale), causal);
    });
    return y;
}

Tensor scaled_masked_softmax_backward(const Tensor& dy, const Tensor& y, double scale) {
    require_twins(dy, y);
    const int dtype = dtype_of(y);
    Tensor dx = empty_like(y);
    const int64_t sk = width_of(y);
    parallel_for(0, rows_of(y), grain(sk), [&](int64_t begin, int64_t end) {
        softmax_kernels().backward(dtype, in(dy), in(y), out(dx), begin, end, sk, float(scale));
    });
    return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("scaled_masked_softmax_forward", TORCH_BOX(&scaled_masked_softmax_forward));
    m.impl("scaled_masked_softmax_backward", TORCH_BOX(&scaled_masked_softmax_backward));
}

}  // namespace chimed

#endif
