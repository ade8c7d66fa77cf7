// Maximum and sum of exp(x - max) of a row in one pass over memory: a block of the row that raises
// the maximum rescales the running sum (Milakov and Gimelshein, arXiv 1805.02867).
#pragma once

#include "vec.h"

namespace {

struct RowStats {
    float max, sum;
};

// `read(first element, lanes)` returns elements of the row; 1024 of them fit the first-level cache.
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

}  // namespace
