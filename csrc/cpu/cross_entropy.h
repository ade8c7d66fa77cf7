// Cross-entropy over a slice of the vocabulary: statistics of each row, and the gradient, written
// over the logits.
#pragma once

#include "op.h"

struct CrossEntropyKernels {
    // logits [T, v]; only the first `valid` columns count; target: global ids, local column =
    // target - vocab_start; max, sum = sum(exp(x - max)), target_logit (0 if not local): fp32 [T].
    void (*stats)(int dtype, const void* logits, const int64_t* target, float* max, float* sum,
                  float* target_logit, int64_t begin, int64_t end, int64_t v, int64_t valid,
                  int64_t vocab_start);
    // logits <- grad * ((1 + 2 * z_loss * lse) * softmax - onehot); 0 where grad is 0.
    void (*backward)(int dtype, void* logits, const int64_t* target, const float* log_sum_exp,
                     const float* grad, int64_t begin, int64_t end, int64_t v, int64_t valid,
                     int64_t vocab_start, float z_loss);
};
CHIMED_CPU_KERNELS(CrossEntropyKernels, cross_entropy)

#ifndef CHIMED_BINDING

#include "online_softmax.h"

namespace {

void cross_entropy_stats(int dtype, const void* logits, const int64_t* target, float* max,
                         float* sum, float* target_logit, int64_t begin, int64_t end, int64_t v,
                         int64_t valid, int64_t vocab_start) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        for (int64_t row = begin; row < end; ++row) {
            const auto* x = (const typename Format::Element*)logits + row * v;
            const RowStats stats = row_stats(valid, [&](int64_t i, auto lanes) CHIMED_INLINE {
                return load<Format>(x + i, lanes);
            });
            const int64_t column = target[row] - vocab_start;
            const bool is_local = column >= 0 && column < valid;
            max[row] = stats.max;
            sum[row] = stats.sum;
            target_logit[row] = is_local ? load<Format>(x + column, First{1})[0] : 0.0f;
        }
    });
}

void cross_entropy_backward(int dtype, void* logits, const int64_t* target,
                            const float* log_sum_exp, const float* grad, int64_t begin,
                            int64_t end, int64_t v, int64_t valid, int64_t vocab_start,
                            float z_loss) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        for (int64_t row = begin; row < end; ++row) {
            Element* x = (Element*)logits + row * v;
            const float g = grad[row];
            const float lse = log_sum_exp[row];
            const float factor = g * (1.0f + 2.0f * z_loss * lse);
            const int64_t live = g == 0.0f ? 0 : valid;
            const int64_t column = target[row] - vocab_start;
            const bool is_local = column >= 0 && column < live;
            const float logit = is_local ? load<Format>(x + column, First{1})[0] : 0.0f;
            for_each_vector(live, [&](int64_t i, auto lanes) CHIMED_INLINE {
                store<Format>(x + i, factor * exp(load<Format>(x + i, lanes) - lse), lanes);
            });
            memset(x + live, 0, size_t(v - live) * sizeof(Element));
            // From the fp32 logit: subtracting 1 from a rounded probability would lose its digits.
            if (is_local)
                store<Format>(x + column, splat(factor * exp(logit - lse) - g), First{1});
        }
    });
}

}  // namespace

const CrossEntropyKernels CHIMED_TABLE(cross_entropy) = {cross_entropy_stats,
                                                         cross_entropy_backward};

#else

namespace chimed {
namespace {

std::tuple<Tensor, Tensor, Tensor> cross_entropy_stats(const Tensor& logits, const Tensor& target,
                                                       int64_t vocab_start, int64_t vocab_size) {
    const int64_t rows = rows_of(logits), v = width_of(logits);
    require_logits(logits, target);
    const int dtype = dtype_of(logits);
    const int64_t valid = valid_columns(logits, vocab_start, vocab_size);
    Tensor max = fp32_like(logits, {rows}), sum = fp32_like(logits, {rows}),
           target_logit = fp32_like(logits, {rows});
    parallel_for(0, rows, grain(v), [&](int64_t begin, int64_t end) {
        cross_entropy_kernels().stats(dtype, in(logits), in<int64_t>(target), out<float>(max),
                                      out<float>(sum), out<float>(target_logit), begin, end, v,
                                      valid, vocab_start);
    });
    return {max, sum, target_logit};
}

void cross_entropy_backward_(const Tensor& logits, const Tensor& target, const Tensor& log_sum_exp,
                             const Tensor& grad, int64_t vocab_start, int64_t vocab_size,
                             double z_loss) {
    const int64_t rows = rows_of(logits), v = width_of(logits);
    require_logits(logits, target);
    require_fp32(log_sum_exp, rows);
    require_fp32(grad, rows);
    const int dtype = dtype_of(logits);
    const int64_t valid = valid_columns(logits, vocab_start, vocab_size);
    parallel_for(0, rows, grain(v), [&](int64_t begin, int64_t end) {
        cross_entropy_kernels().backward(dtype, out(logits), in<int64_t>(target),
                                         in<float>(log_sum_exp), in<float>(grad), begin, end, v,
                                         valid, vocab_start, float(z_loss));
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("cross_entropy_stats", TORCH_BOX(&cross_entropy_stats));
    m.impl("cross_entropy_backward_", TORCH_BOX(&cross_entropy_backward_));
}

}  // namespace chimed

#endif
