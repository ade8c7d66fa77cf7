// RMSNorm (Zhang and Sennrich, arXiv 1910.07467), alone and fused with the residual add before it.
//
// Bytes moved per element of 16 bits: forward 4, backward 6; with the add, 8 and 8.
// One block holds one row in registers, so x is read once. The backward's grid is as large as the
// device and each thread keeps its columns for all of its block's rows: dweight is summed in
// registers, written once per block as fp32 partials and added up by a second kernel. No atomics:
// the same rows give the same bits.
// Rows that are unaligned, or too long for registers, take the `_any` kernels: correct, not fast.
// Absent: zero-centred gamma, bias.

#include "chimed_types.h"

extern "C" {

// y = (x * rstd) * weight; rstd = 1 / sqrt(mean(x^2) + eps), fp32 [rows]. residual and summed: both
// given (x + residual is rounded, stored and normalised) or both null.
int chimed_cuda_rms_norm_forward(int dtype, const void* x, const void* residual,
                                 const void* weight, void* y, void* summed, float* rstd,
                                 int64_t rows, int64_t h, float eps, void* stream);

// How many fp32 rows [h] of scratch the backward needs on the current device.
int64_t chimed_cuda_rms_norm_partials(int dtype, int64_t rows, int64_t h);

// dsummed (may be null) is the gradient that reaches the sum beside the norm; it is added to dx.
// partials: scratch fp32 [num_partials, h], with num_partials from the function above.
int chimed_cuda_rms_norm_backward(int dtype, const void* dy, const void* dsummed, const void* x,
                                  const void* weight, const float* rstd, void* dx, void* dweight,
                                  float* partials, int64_t num_partials, int64_t rows, int64_t h,
                                  void* stream);

}

#ifndef CHIMED_BINDING

#include "device.cuh"
#include "launch.cuh"

namespace chimed {
namespace {

constexpr int kForwardThreads = 128, kForwardMost = 1024;
// The backward also holds a row of sums, so it wants more threads with fewer vectors in each. Two
// blocks of 512 per multiprocessor bound the registers at 64: three blocks of h = 5120 fit.
constexpr int kBackwardThreads = 512;
constexpr int kAnyThreads = 256;

template <typename T, int kVecs, bool kAdd>
__global__ void __launch_bounds__(kVecs < 4 ? kForwardThreads : kForwardMost)
    rms_norm_forward(const T* __restrict__ x, const T* __restrict__ residual,
                     const T* __restrict__ weight, T* __restrict__ y, T* __restrict__ summed,
                     float* __restrict__ rstd, int64_t h, float eps) {
    constexpr int kWidth = kVectorWidth<T>;
    const int vectors = int(h / kWidth);
    const int64_t start = int64_t(blockIdx.x) * h;
    Pack<T, kWidth> row[kVecs], other[kVecs];
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        row[v] = other[v] = {};
        if (index >= vectors) continue;
        row[v] = load<kWidth>(x + start, index);
        if (kAdd) other[v] = load<kWidth>(residual + start, index);
    }
    float squares = 0.f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            // The norm sees the rounded sum: what the next layer and the backward read.
            if (kAdd) row[v].at[i] = T(float(row[v].at[i]) + float(other[v].at[i]));
            squares += float(row[v].at[i]) * float(row[v].at[i]);
        }
        const int index = v * blockDim.x + threadIdx.x;
        if (kAdd && index < vectors) store<kWidth>(summed + start, index, row[v]);
    }
    const float scale = rsqrtf(block_sum(squares) / float(h) + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        if (index >= vectors) continue;
        const Pack<T, kWidth> gamma = load<kWidth>(weight, index);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            const T normed = T(float(row[v].at[i]) * scale);
            row[v].at[i] = T(float(normed) * float(gamma.at[i]));
        }
        store<kWidth>(y + start, index, row[v]);
    }
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kAnyThreads)
    rms_norm_forward_any(const T* __restrict__ x, const T* __restrict__ residual,
                         const T* __restrict__ weight, T* __restrict__ y, T* __restrict__ summed,
                         float* __restrict__ rstd, int64_t h, float eps) {
    const int64_t start = int64_t(blockIdx.x) * h;
    float squares = 0.f;
    for (int64_t column = threadIdx.x; column < h; column += blockDim.x) {
        T value = x[start + column];
        if (kAdd) {
            value = T(float(value) + float(residual[start + column]));
            summed[start + column] = value;
        }
        squares += float(value) * float(value);
    }
    const float scale = rsqrtf(block_sum(squares) / float(h) + eps);
    if (threadIdx.x == 0) rstd[blockIdx.x] = scale;
    for (int64_t column = threadIdx.x; column < h; column += blockDim.x) {
        // A thread reads back only the sums that it wrote itself.
        const T value = kAdd ? summed[start + column] : x[start + column];
        y[start + column] = T(float(T(float(value) * scale)) * float(weight[column]));
    }
}

// With n = x * rstd and g = dy * weight: dx = rstd * (g - n * mean(g * n)), dweight = sum(dy * n).
// The weight is read again for each row, from L1: kept in registers it made them spill. dsummed is
// read after the reduction for the same reason. The next row starts to move from memory before the
// reduction, during which nothing else would, but only into L2: in registers it would cost 16 of 64.
template <typename T, int kVecs, bool kAdd>
__global__ void __launch_bounds__(kBackwardThreads, kVecs < 4 ? 2 : 1)
    rms_norm_backward(const T* __restrict__ dy, const T* __restrict__ dsummed,
                      const T* __restrict__ x, const T* __restrict__ weight,
                      const float* __restrict__ rstd, T* __restrict__ dx,
                      float* __restrict__ partials, int64_t rows, int64_t h) {
    constexpr int kWidth = kVectorWidth<T>;
    constexpr int kLine = kLineBytes / int(sizeof(T));
    const int vectors = int(h / kWidth);
    float dweight[kVecs][kWidth];
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) dweight[v][i] = 0.f;
    }
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int64_t start = row * h;
        const float scale = rstd[row];
        Pack<T, kWidth> grad[kVecs], input[kVecs];
#pragma unroll
        for (int v = 0; v < kVecs; ++v) {
            const int index = v * blockDim.x + threadIdx.x;
            grad[v] = input[v] = {};
            if (index >= vectors) continue;
            grad[v] = load<kWidth>(dy + start, index);
            input[v] = load<kWidth>(x + start, index);
        }
        float dot = 0.f;
#pragma unroll
        for (int v = 0; v < kVecs; ++v) {
            const int index = v * blockDim.x + threadIdx.x;
            if (index >= vectors) continue;
            const Pack<T, kWidth> gamma = load<kWidth>(weight, index);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                dot += float(grad[v].at[i]) * float(gamma.at[i]) * float(input[v].at[i]);
            }
        }
        // A line for each thread, of which there are more than lines.
        if (row + gridDim.x < rows && threadIdx.x * kLine < h) {
            const int64_t next = start + gridDim.x * h + threadIdx.x * kLine;
            prefetch(dy + next);
            prefetch(x + next);
            if (kAdd) prefetch(dsummed + next);
        }
        const float mean = block_sum(dot) * scale / float(h);
#pragma unroll
        for (int v = 0; v < kVecs; ++v) {
            const int index = v * blockDim.x + threadIdx.x;
            if (index >= vectors) continue;
            const Pack<T, kWidth> gamma = load<kWidth>(weight, index);
            Pack<T, kWidth> straight = {};
            if (kAdd) straight = load<kWidth>(dsummed + start, index);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                const float normed = float(input[v].at[i]) * scale;
                const float g = float(grad[v].at[i]);
                dweight[v][i] += g * normed;
                float out = scale * (g * float(gamma.at[i]) - normed * mean);
                if (kAdd) out += float(straight.at[i]);
                input[v].at[i] = T(out);
            }
            store<kWidth>(dx + start, index, input[v]);
        }
    }
    static_assert(kWidth % 4 == 0, "the sums are stored four floats at a time");
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        if (index >= vectors) continue;
#pragma unroll
        for (int i = 0; i < kWidth; i += 4) {
            const Pack<float, 4> sums = {
                {dweight[v][i], dweight[v][i + 1], dweight[v][i + 2], dweight[v][i + 3]}};
            float* mine = partials + int64_t(blockIdx.x) * h + int64_t(index) * kWidth + i;
            store<4>(mine, 0, sums);
        }
    }
}

template <typename T, bool kAdd>
__global__ void __launch_bounds__(kAnyThreads)
    rms_norm_backward_any(const T* __restrict__ dy, const T* __restrict__ dsummed,
                          const T* __restrict__ x, const T* __restrict__ weight,
                          const float* __restrict__ rstd, T* __restrict__ dx,
                          float* __restrict__ partials, int64_t rows, int64_t h) {
    // A column of the sums belongs to one thread from the first row to the last.
    float* sums = partials + int64_t(blockIdx.x) * h;
    for (int64_t column = threadIdx.x; column < h; column += blockDim.x) sums[column] = 0.f;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const int64_t start = row * h;
        const float scale = rstd[row];
        float dot = 0.f;
        for (int64_t column = threadIdx.x; column < h; column += blockDim.x) {
            dot += float(dy[start + column]) * float(weight[column]) * float(x[start + column]);
        }
        const float mean = block_sum(dot) * scale / float(h);
        for (int64_t column = threadIdx.x; column < h; column += blockDim.x) {
            const float normed = float(x[start + column]) * scale;
            const float g = float(dy[start + column]);
            sums[column] += g * normed;
            float out = scale * (g * float(weight[column]) - normed * mean);
            if (kAdd) out += float(dsummed[start + column]);
            dx[start + column] = T(out);
        }
    }
}

// dweight[c] = sum over n of partials[n, c]. A block takes 32 columns: its warps read rows of the
// partials (coalesced), then the tile is turned so that one warp adds up one column.
template <typename T>
__global__ void __launch_bounds__(kWarp* kWarp)
    sum_partials(const float* __restrict__ partials, T* __restrict__ dweight, int64_t num_partials,
                 int64_t h) {
    __shared__ float tile[kWarp][kWarp + 1];  // + 1: a column's words lie in 32 different banks
    const int lane = threadIdx.x % kWarp;
    const int warp = threadIdx.x / kWarp;
    const int64_t first = int64_t(blockIdx.x) * kWarp;
    float sum = 0.f;
    if (first + lane < h) {
        for (int64_t n = warp; n < num_partials; n += kWarp) sum += partials[n * h + first + lane];
    }
    tile[warp][lane] = sum;
    __syncthreads();
    sum = warp_reduce(tile[lane][warp], Add());
    if (lane == 0 && first + warp < h) dweight[first + warp] = T(sum);
}

RowPlan plan_backward(int64_t vectors) {
    return plan_row(vectors, kBackwardThreads, kBackwardThreads);
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int chimed_cuda_rms_norm_forward(int dtype, const void* x, const void* residual,
                                            const void* weight, void* y, void* summed, float* rstd,
                                            int64_t rows, int64_t h, float eps, void* stream) {
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        return with_flag(residual != nullptr, [&](auto add) {
            constexpr bool kAdd = decltype(add)::value;
            const bool vectorize = can_vectorize<T>(h, {x, residual, weight, y, summed});
            const RowPlan plan = plan_row(h / kVectorWidth<T>, kForwardThreads, kForwardMost);
            auto run = [&](auto kernel, int threads) {
                return launch(kernel, rows, threads, stream, static_cast<const T*>(x),
                              static_cast<const T*>(residual), static_cast<const T*>(weight),
                              static_cast<T*>(y), static_cast<T*>(summed), rstd, h, eps);
            };
            if (!vectorize || plan.vecs == 0) {
                return run(rms_norm_forward_any<T, kAdd>, block_threads(h, kAnyThreads));
            }
            return with_vecs(plan.vecs, [&](auto vecs) {
                return run(rms_norm_forward<T, decltype(vecs)::value, kAdd>, plan.threads);
            });
        });
    });
}

extern "C" int64_t chimed_cuda_rms_norm_partials(int dtype, int64_t rows, int64_t h) {
    const int width = dtype == CHIMED_F32 ? kVectorWidth<float> : kVectorWidth<__half>;
    const RowPlan plan = plan_backward(ceil_div(h, width));
    const int threads = plan.vecs == 0 ? kAnyThreads : plan.threads;
    constexpr cudaDeviceAttr kCount = cudaDevAttrMultiProcessorCount;
    int device = 0, processors = 0;
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&processors, kCount, device) != cudaSuccess) {
        cudaGetLastError();
        processors = 1;  // the launch that follows reports what is wrong
    }
    // About 1024 threads per multiprocessor: enough loads in flight; more blocks would only write
    // more partials. At h = 5120 that is 3 blocks and, for 8192 rows, 3 % of the bytes of the op.
    const int64_t blocks = std::min(16, std::max(2, 1024 / threads));
    return std::min(rows, processors * blocks);
}

extern "C" int chimed_cuda_rms_norm_backward(int dtype, const void* dy, const void* dsummed,
                                             const void* x, const void* weight, const float* rstd,
                                             void* dx, void* dweight, float* partials,
                                             int64_t num_partials, int64_t rows, int64_t h,
                                             void* stream) {
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        const int error = with_flag(dsummed != nullptr, [&](auto add) {
            constexpr bool kAdd = decltype(add)::value;
            const bool vectorize = can_vectorize<T>(h, {dy, dsummed, x, weight, dx, partials});
            const RowPlan plan = plan_backward(h / kVectorWidth<T>);
            auto run = [&](auto kernel, int threads) {
                return launch(kernel, num_partials, threads, stream, static_cast<const T*>(dy),
                              static_cast<const T*>(dsummed), static_cast<const T*>(x),
                              static_cast<const T*>(weight), rstd, static_cast<T*>(dx), partials,
                              rows, h);
            };
            if (!vectorize || plan.vecs == 0) {
                return run(rms_norm_backward_any<T, kAdd>, block_threads(h, kAnyThreads));
            }
            return with_vecs(plan.vecs, [&](auto vecs) {
                return run(rms_norm_backward<T, decltype(vecs)::value, kAdd>, plan.threads);
            });
        });
        if (error != cudaSuccess) return error;
        return launch(sum_partials<T>, ceil_div(h, kWarp), kWarp * kWarp, stream, partials,
                      static_cast<T*>(dweight), num_partials, h);
    });
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

std::tuple<Tensor, Tensor, Tensor> norm_forward(const Tensor& x, const Tensor* residual,
                                                const Tensor& weight, double eps) {
    const OnDevice here(x, {residual, &weight});
    const int64_t rows = rows_of(x);
    require_dense(x);
    require_weight(weight, x);
    if (residual) require_twins(x, *residual);
    Tensor y = empty_like(x), summed = residual ? empty_like(x) : x, rstd = fp32_like(x, {rows});
    check(chimed_cuda_rms_norm_forward(dtype_of(x), in(x), in_or_null(residual), in(weight), out(y),
                                       residual ? out(summed) : nullptr, out<float>(rstd), rows,
                                       width_of(x), float(eps), here.stream()),
          "rms_norm_forward");
    return {y, summed, rstd};
}

std::tuple<Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor* dsummed, const Tensor& x,
                                         const Tensor& weight, const Tensor& rstd) {
    const OnDevice here(x, {&dy, dsummed, &weight, &rstd});
    const int64_t rows = rows_of(x), h = width_of(x);
    require_twins(dy, x);
    require_weight(weight, x);
    require_fp32(rstd, rows);
    if (dsummed) require_twins(*dsummed, x);
    const int64_t num_partials = chimed_cuda_rms_norm_partials(dtype_of(x), rows, h);
    Tensor dx = empty_like(x), dweight = empty_like(weight),
           partials = fp32_like(x, {num_partials, h});
    check(chimed_cuda_rms_norm_backward(dtype_of(x), in(dy), in_or_null(dsummed), in(x), in(weight),
                                        in<float>(rstd), out(dx), out(dweight),
                                        out<float>(partials), num_partials, rows, h, here.stream()),
          "rms_norm_backward");
    return {dx, dweight};
}

#include "../bind/norm_ops.h"  // the four ops, by these two functions

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("rms_norm_forward", TORCH_BOX(&rms_norm_forward));
    m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
    m.impl("add_rms_norm_forward", TORCH_BOX(&add_rms_norm_forward));
    m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
}

}  // namespace chimed

#endif
