// y = x * weight^T for generation: a row of y has the same bits whatever other rows there are and
// however many threads run, and for few rows the weight is read once, in order, at the speed of
// memory. Lanes are rows of x, so nothing is summed across them.
#pragma once

#include "op.h"

struct InvariantLinearKernels {
    // x [rows, k] -> fp32 [k, padded], zeros beyond rows.
    void (*transpose)(int dtype, const void* x, float* x_t, int64_t rows, int64_t padded,
                      int64_t k);
    // Columns [begin, end) of y [rows, n] = x * weight^T; x_t from `transpose`, padded to a
    // multiple of 16; weight [n, k].
    void (*multiply)(int dtype, const float* x_t, const void* weight, void* y, int64_t begin,
                     int64_t end, int64_t rows, int64_t padded, int64_t k, int64_t n);
};
CHIMED_CPU_KERNELS(InvariantLinearKernels, invariant_linear)

#ifndef CHIMED_BINDING

namespace {

// How many vectors of sums a block of columns of y keeps in registers.
constexpr int kSums = kLanes == 16 ? 16 : 8;
// Products per partial sum: short sums lose fewer digits, and a block of x stays in the cache.
constexpr int64_t kRun = 256;

constexpr int64_t kLine = 16;  // elements of a cache line, at least

// Rows of x -> x_t[i * padded + row] in fp32, zeros from `rows` to `padded`.
void transpose(int dtype, const void* x_, float* x_t, int64_t rows, int64_t padded, int64_t k) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        const auto* x = (const typename Format::Element*)x_;
        for (int64_t i = 0; i < k; ++i)
            for (int64_t row = rows; row < padded; ++row) x_t[i * padded + row] = 0.0f;
        for (int64_t row = 0; row < rows; ++row)
            for_each_vector(k, [&](int64_t i, auto lanes) CHIMED_INLINE {
                float values[kLanes];
                const F32 v = load<Format>(x + row * k + i, lanes);
                memcpy(values, &v, sizeof(v));
                const int64_t count = k - i < kLanes ? k - i : kLanes;
                for (int64_t u = 0; u < count; ++u) x_t[(i + u) * padded + row] = values[u];
            });
    });
}

template <class Format>
CHIMED_INLINE inline float one(const typename Format::Element* from) {
    if constexpr (sizeof(typename Format::Element) == sizeof(float)) return *from;
    else return load<Format>(from, First{1})[0];
}

// `kColumns` columns of y, `kVectors` vectors of rows.
template <class Format, int kVectors, int kColumns>
CHIMED_INLINE inline void linear_block(const float* x_t, const typename Format::Element* weight,
                                       typename Format::Element* y, int64_t rows, int64_t padded,
                                       int64_t k, int64_t n) {
    F32 totals[kColumns][kVectors] = {};
    for (int64_t start = 0; start < k; start += kRun) {
        const int64_t end = k - start < kRun ? k : start + kRun;
        F32 sums[kColumns][kVectors] = {};
        for (int64_t i = start; i < end; ++i) {
            // The next columns are prefetched while these are computed: a weight is rarely in a
            // cache, and the hardware does not follow this many streams.
            if (i % kLine == 0)
                for (int c = 0; c < kColumns; ++c)
                    __builtin_prefetch(weight + (kColumns + c) * k + i);
            F32 x[kVectors];
            for (int v = 0; v < kVectors; ++v)
                x[v] = load<Float32>(x_t + i * padded + v * kLanes, All{});
            for (int c = 0; c < kColumns; ++c) {
                const float w = one<Format>(weight + c * k + i);
                for (int v = 0; v < kVectors; ++v) sums[c][v] += w * x[v];
            }
        }
        for (int c = 0; c < kColumns; ++c)
            for (int v = 0; v < kVectors; ++v) totals[c][v] += sums[c][v];
    }
    float buffer[kColumns][kVectors * kLanes];
    memcpy(buffer, totals, sizeof(buffer));
    for (int64_t row = 0; row < rows; ++row)
        for (int c = 0; c < kColumns; ++c)
            store<Format>(y + row * n + c, splat(buffer[c][row]), First{1});
}

template <class Format, int kVectors>
CHIMED_INLINE inline void linear_columns(const float* x_t,
                                         const typename Format::Element* weight,
                                         typename Format::Element* y, int64_t begin, int64_t end,
                                         int64_t rows, int64_t padded, int64_t k, int64_t n) {
    constexpr int kColumns = kSums / kVectors;
    int64_t c = begin;
    for (; c + kColumns <= end; c += kColumns)
        linear_block<Format, kVectors, kColumns>(x_t, weight + c * k, y + c, rows, padded, k, n);
    for (; c < end; ++c)
        linear_block<Format, kVectors, 1>(x_t, weight + c * k, y + c, rows, padded, k, n);
}

void invariant_linear(int dtype, const float* x_t, const void* weight_, void* y_, int64_t begin,
                      int64_t end, int64_t rows, int64_t padded, int64_t k, int64_t n) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        const auto* weight = (const Element*)weight_;
        // A tile of columns meets all rows while it is in the cache.
        constexpr int64_t kTile = 64;
        for (int64_t tile = begin; tile < end; tile += kTile) {
            const int64_t stop = end - tile < kTile ? end : tile + kTile;
            for (int64_t row = 0; row < rows; row += 2 * kLanes) {
                const int64_t count = rows - row < 2 * kLanes ? rows - row : 2 * kLanes;
                Element* y = (Element*)y_ + row * n;
                if (count > kLanes)
                    linear_columns<Format, 2>(x_t + row, weight, y, tile, stop, count, padded,
                                              k, n);
                else
                    linear_columns<Format, 1>(x_t + row, weight, y, tile, stop, count, padded,
                                              k, n);
            }
        }
    });
}

}  // namespace

const InvariantLinearKernels CHIMED_TABLE(invariant_linear) = {transpose, invariant_linear};

#else

namespace chimed {
namespace {

Tensor invariant_linear(const Tensor& x, const Tensor& weight) {
    require_dense(x);
    require_dense(weight);
    const int64_t rows = rows_of(x), k = width_of(x);
    const int dtype = dtype_of(x);
    require(weight.dim() == 2 && weight.size(1) == k && weight.scalar_type() == x.scalar_type(),
            "weight must be [n, k] with the width and dtype of x");
    // An odd number of cache lines: columns that follow one another share no cache set.
    const int64_t n = weight.size(0), padded = ((rows + 15) / 16 | 1) * 16;
    Tensor y = with_width(x, n), x_t = fp32_like(x, {k, padded});
    invariant_linear_kernels().transpose(dtype, in(x), out<float>(x_t), rows, padded, k);
    parallel_for(0, n, std::max<int64_t>(64, grain(k)), [&](int64_t begin, int64_t end) {
        invariant_linear_kernels().multiply(dtype, in<float>(x_t), in(weight), out(y), begin,
                                            end, rows, padded, k, n);
    });
    return y;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("invariant_linear", TORCH_BOX(&invariant_linear));
}

}  // namespace chimed

#endif
