// softmax(scale * x) over the last dimension of attention scores, masked and/or causal.
//
// Bytes moved per score of 16 bits: forward 4 (+ 1 for a mask), backward 6; what the causal limit
// hides is not read. Rows to 16384 columns stay in the registers of one block; longer or unaligned
// rows take the `_any` kernels, which read the scores twice.
// A masked score counts as exactly zero, and a row without any visible score becomes zeros.
// Kept for the module names of megatron-core; attention itself runs on torch's fused kernels.
// Absent: dropout, several rows per block (short rows are not where this is used).

#include "chimed_types.h"

extern "C" {

// x [b, n, sq, sk], rows = b * n * sq, sk < 2^30. mask: bool [b or 1, 1, sq, sk] or null, true =
// masked; mask_period: rows of x per mask (n * sq), or 0 for one mask for all. causal: query i sees
// column j where j <= i + sk - sq.
int chimed_cuda_softmax_forward(int dtype, const void* x, const uint8_t* mask, void* y,
                                int64_t rows, int64_t sq, int64_t sk, int64_t mask_period,
                                float scale, int causal, void* stream);

// dx = scale * y * (dy - sum(dy * y)).
int chimed_cuda_softmax_backward(int dtype, const void* dy, const void* y, void* dx, int64_t rows,
                                 int64_t sk, float scale, void* stream);

}

#ifndef CHIMED_BINDING

#include "device.cuh"
#include "launch.cuh"
#include "online_softmax.cuh"

namespace chimed {
namespace {

constexpr int kPreferredThreads = 128, kAnyThreads = 256;

// 4 vectors of 8 in each of 512 threads, or of 4 in 1024: 16384 columns and a register budget that
// does not spill (128 and 64 registers).
constexpr int most_threads(int width) { return 4096 / width; }

static_assert(4 * 8 * most_threads(8) == 16384 && 4 * 4 * most_threads(4) == 16384, "row limit");

struct Mask {
    const uint8_t* hidden;  // bool [images, sq, sk], or null
    int64_t period;         // rows of x per image; 0: one image for all
    int64_t sq;
    int sk;
    bool causal;

    // The first column that the causal limit hides from this row.
    __device__ int limit(int64_t row) const {
        if (!causal) return sk;
        const int64_t visible = row % sq + 1 + sk - sq;
        return visible < 0 ? 0 : visible < sk ? int(visible) : sk;
    }

    __device__ const uint8_t* of_row(int64_t row) const {
        if (hidden == nullptr) return nullptr;
        const int64_t image = period == 0 ? 0 : row / period;
        return hidden + (image * sq + row % sq) * sk;
    }
};

template <typename T, int kVecs>
__global__ void __launch_bounds__(most_threads(kVectorWidth<T>))
    softmax_forward(const T* __restrict__ x, T* __restrict__ y, const Mask mask, float scale) {
    constexpr int kWidth = kVectorWidth<T>;
    const int vectors = mask.sk / kWidth;
    const int limit = mask.limit(blockIdx.x);
    const uint8_t* hidden = mask.of_row(blockIdx.x);
    const T* row = x + int64_t(blockIdx.x) * mask.sk;
    float value[kVecs][kWidth];
    float max = -INFINITY;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        const bool seen = index * kWidth < limit;  // limit <= sk: then index < vectors too
        Pack<T, kWidth> scores = {};
        Pack<uint8_t, kWidth> hides = {};
        if (seen) scores = load<kWidth>(row, index);
        if (seen && hidden != nullptr) hides = load<kWidth>(hidden, index);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            const bool visible = index * kWidth + i < limit && hides.at[i] == 0;
            value[v][i] = visible ? scale * float(scores.at[i]) : -INFINITY;
            max = fmaxf(max, value[v][i]);
        }
    }
    const float shift = exp_shift(block_max(max));
    float sum = 0.f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            value[v][i] = fast_exp(value[v][i] - shift);
            sum += value[v][i];
        }
    }
    sum = block_sum(sum);
    const float inverse = sum == 0.f ? 0.f : 1.f / sum;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        if (index >= vectors) continue;
        Pack<T, kWidth> out;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) out.at[i] = T(value[v][i] * inverse);
        store<kWidth>(y + int64_t(blockIdx.x) * mask.sk, index, out);
    }
}

template <typename T>
__global__ void __launch_bounds__(kAnyThreads)
    softmax_forward_any(const T* __restrict__ x, T* __restrict__ y, const Mask mask, float scale) {
    const int limit = mask.limit(blockIdx.x);
    const uint8_t* hidden = mask.of_row(blockIdx.x);
    const int64_t start = int64_t(blockIdx.x) * mask.sk;
    auto is_visible = [&](int column) {
        return column < limit && (hidden == nullptr || hidden[column] == 0);
    };
    MaxSum state = {-INFINITY, 0.f};
    for (int column = threadIdx.x; column < limit; column += blockDim.x) {
        if (!is_visible(column)) continue;
        const float value[1] = {scale * float(x[start + column])};
        state = absorb(state, value);
    }
    // Every thread may hold another rounding of the merged sum; all take the first thread's.
    __shared__ MaxSum shared_state;
    state = block_reduce(state, MaxSum{-INFINITY, 0.f}, Merge());
    if (threadIdx.x == 0) shared_state = state;
    __syncthreads();
    const float shift = exp_shift(shared_state.max);
    const float inverse = shared_state.sum == 0.f ? 0.f : 1.f / shared_state.sum;
    for (int column = threadIdx.x; column < mask.sk; column += blockDim.x) {
        const bool visible = is_visible(column);
        const float value = visible ? fast_exp(scale * float(x[start + column]) - shift) : 0.f;
        y[start + column] = T(value * inverse);
    }
}

// dx = scale * y * (dy - sum(dy * y)); y is 0 where a score was masked, and so is dx.
template <typename T, int kVecs>
__global__ void __launch_bounds__(most_threads(kVectorWidth<T>))
    softmax_backward(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx, int sk,
                     float scale) {
    constexpr int kWidth = kVectorWidth<T>;
    const int vectors = sk / kWidth;
    const int64_t start = int64_t(blockIdx.x) * sk;
    Pack<T, kWidth> grad[kVecs], prob[kVecs];
    float dot = 0.f;
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        grad[v] = prob[v] = {};
        if (index >= vectors) continue;
        grad[v] = load<kWidth>(dy + start, index);
        prob[v] = load<kWidth>(y + start, index);
    }
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) dot += float(grad[v].at[i]) * float(prob[v].at[i]);
    }
    dot = block_sum(dot);
#pragma unroll
    for (int v = 0; v < kVecs; ++v) {
        const int index = v * blockDim.x + threadIdx.x;
        if (index >= vectors) continue;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            grad[v].at[i] = T(scale * float(prob[v].at[i]) * (float(grad[v].at[i]) - dot));
        }
        store<kWidth>(dx + start, index, grad[v]);
    }
}

template <typename T>
__global__ void __launch_bounds__(kAnyThreads)
    softmax_backward_any(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                         int sk, float scale) {
    const int64_t start = int64_t(blockIdx.x) * sk;
    float dot = 0.f;
    for (int column = threadIdx.x; column < sk; column += blockDim.x) {
        dot += float(dy[start + column]) * float(y[start + column]);
    }
    dot = block_sum(dot);
    for (int column = threadIdx.x; column < sk; column += blockDim.x) {
        const float grad = float(dy[start + column]) - dot;
        dx[start + column] = T(scale * float(y[start + column]) * grad);
    }
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int chimed_cuda_softmax_forward(int dtype, const void* x, const uint8_t* mask, void* y,
                                           int64_t rows, int64_t sq, int64_t sk,
                                           int64_t mask_period, float scale, int causal,
                                           void* stream) {
    const Mask of = {mask, mask_period, sq, int(sk), causal != 0};
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = kVectorWidth<T>;
        const RowPlan plan = plan_row(sk / kWidth, kPreferredThreads, most_threads(kWidth));
        auto run = [&](auto kernel, int threads) {
            return launch(kernel, rows, threads, stream, static_cast<const T*>(x),
                          static_cast<T*>(y), of, scale);
        };
        const bool mask_vectorizes = reinterpret_cast<uintptr_t>(mask) % kWidth == 0;
        if (!can_vectorize<T>(sk, {x, y}) || !mask_vectorizes || plan.vecs == 0) {
            return run(softmax_forward_any<T>, block_threads(sk, kAnyThreads));
        }
        return with_vecs(plan.vecs, [&](auto vecs) {
            return run(softmax_forward<T, decltype(vecs)::value>, plan.threads);
        });
    });
}

extern "C" int chimed_cuda_softmax_backward(int dtype, const void* dy, const void* y, void* dx,
                                            int64_t rows, int64_t sk, float scale, void* stream) {
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = kVectorWidth<T>;
        const RowPlan plan = plan_row(sk / kWidth, kPreferredThreads, most_threads(kWidth));
        auto run = [&](auto kernel, int threads) {
            return launch(kernel, rows, threads, stream, static_cast<const T*>(dy),
                          static_cast<const T*>(y), static_cast<T*>(dx), int(sk), scale);
        };
        if (!can_vectorize<T>(sk, {dy, y, dx}) || plan.vecs == 0) {
            return run(softmax_backward_any<T>, block_threads(sk, kAnyThreads));
        }
        return with_vecs(plan.vecs, [&](auto vecs) {
            return run(softmax_backward<T, decltype(vecs)::value>, plan.threads);
        });
    });
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

Tensor scaled_masked_softmax_forward(const Tensor& x, const std::optional<Tensor>& mask,
                                     double scale, bool causal) {
    const OnDevice here(x, {mask ? &*mask : nullptr});
    require_dense(x);
    require(x.dim() == 4, "x must be [b, n, sq, sk]");
    const int64_t sq = x.size(2), sk = x.size(3);
    require(sk < int64_t(1) << 30, "x must have fewer than 2^30 columns");
    const int64_t period = mask ? mask_period(*mask, x) : 0;
    Tensor y = empty_like(x);
    check(chimed_cuda_softmax_forward(dtype_of(x), in(x), mask ? in<uint8_t>(*mask) : nullptr,
                                      out(y), rows_of(x), sq, sk, period, float(scale), causal,
                                      here.stream()),
          "scaled_masked_softmax_forward");
    return y;
}

Tensor scaled_masked_softmax_backward(const Tensor& dy, const Tensor& y, double scale) {
    const OnDevice here(y, {&dy});
    require_twins(dy, y);
    require(width_of(y) < int64_t(1) << 30, "y must have fewer than 2^30 columns");
    Tensor dx = empty_like(y);
    check(chimed_cuda_softmax_backward(dtype_of(y), in(dy), in(y), out(dx), rows_of(y), width_of(y),
                                       float(scale), here.stream()),
          "scaled_masked_softmax_backward");
    return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("scaled_masked_softmax_forward", TORCH_BOX(&scaled_masked_softmax_forward));
    m.impl("scaled_masked_softmax_backward", TORCH_BOX(&scaled_masked_softmax_backward));
}

}  // namespace chimed

#endif
