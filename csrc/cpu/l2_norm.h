// The L2 norm of many tensors: sums of squares of blocks, then their sum and its root.
#pragma once

#include "op.h"

struct L2NormKernels {
    double (*sum_of_squares)(int dtype, const void* x, int64_t begin, int64_t end);
};
CHIMED_CPU_KERNELS(L2NormKernels, l2_norm)

#ifndef CHIMED_BINDING

namespace {

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

const L2NormKernels CHIMED_TABLE(l2_norm) = {sum_of_squares};

#else

namespace chimed {
namespace {

Tensor l2_norm(const std::vector<Tensor>& tensors) {
    require(!tensors.empty(), "l2_norm needs at least one tensor");
    constexpr int64_t kBlock = 4 * kGrain;
    double total = 0.0;
    for (const Tensor& x : tensors) {
        require_dense(x);
        const int64_t size = x.numel(), num_blocks = (size + kBlock - 1) / kBlock;
        std::vector<double> sums(static_cast<size_t>(num_blocks));
        const int dtype = dtype_of(x);
        parallel_for(0, num_blocks, 1, [&](int64_t first, int64_t last) {
            for (int64_t n = first; n < last; ++n)
                sums[size_t(n)] = l2_norm_kernels().sum_of_squares(
                    dtype, in(x), n * kBlock, std::min(size, (n + 1) * kBlock));
        });
        for (const double sum : sums) total += sum;
    }
    Tensor norm = fp32_like(tensors[0], {});
    *out<float>(norm) = float(std::sqrt(total));
    return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("l2_norm", TORCH_BOX(&l2_norm));
}

}  // namespace chimed

#endif
