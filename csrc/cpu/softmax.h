// What is built on exp(x - max): cross-entropy over a slice of the vocabulary, and attention's
// scaled masked softmax. Maximum and sum come from one pass over memory: the running sum is
// rescaled when a block of a row raises the maximum (Milakov and Gimelshein, arXiv 1805.02867).
#pragma once

#include "vec.h"

namespace {

struct RowStats {
    float max, sum;
};

// `read(first element, lanes)` gives the row; 1024 elements stay in the first-level cache.
template <class Read>
CHIMED_INLINE inline RowStats row_stats(int64_t n, Read read) {
    constexpr int64_t kBlock = 1024;
    RowStats stats = {-kInfinity, 0.0f};
    for (int64_t start = 0; start < n; start += kBlock) {
        const int64_t size = n - start < kBlock ? n - start : kBlock;
        const float block_max = max_over(
            size, [&](int64_t i, auto lanes) CHIMED_INLINE { return read(start + i, lanes); });
        if (block_max > stats.max) {
            stats.sum *= exp(stats.max - block_max);
            stats.max = block_max;
        }
        // Before the first finite value the maximum is -inf, and -inf - -inf would be NaN.
        const float shift = stats.max == -kInfinity ? 0.0f : stats.max;
        stats.sum += sum_over(size, [&](int64_t i, auto lanes) CHIMED_INLINE {
            return with_fill(exp(read(start + i, lanes) - shift), 0.0f, lanes);
        });
    }
    return stats;
}

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
            if (is_local) store<Format>(x + column, splat(factor * exp(logit - lse) - g), First{1});
        }
    });
}

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
