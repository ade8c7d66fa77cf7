// Cross-entropy over a vocabulary that may be split: statistics of the local columns, and the
// gradient written over the logits.
//
// Bytes moved per logit of 16 bits: statistics 2 (one pass), backward 4, and 2 for a token whose
// gradient is zero (ignored tokens are written, not read). No second [T, v] array exists.
// Columns from `valid` on pad the vocabulary: they count for nothing and get zero gradient.
// One block takes one row; indices within a row fit 32 bits, those of rows do not.
// Absent: label smoothing, the all-reduce between the two kernels (Python does it).

#include "chimed_types.h"

extern "C" {

// logits [rows, v], v < 2^30; only the first `valid` columns count. target: global ids, the local
// column is target - vocab_start. max, sum = sum(exp(x - max)) and target_logit (0 if not local):
// fp32 [rows]; max is -inf and sum 0 where valid <= 0.
int chimed_cuda_cross_entropy_stats(int dtype, const void* logits, const int64_t* target,
                                    float* max, float* sum, float* target_logit, int64_t rows,
                                    int64_t v, int64_t valid, int64_t vocab_start, void* stream);

// logits <- grad * ((1 + 2 * z_loss * lse) * softmax - onehot); 0 where grad is 0.
int chimed_cuda_cross_entropy_backward(int dtype, void* logits, const int64_t* target,
                                       const float* log_sum_exp, const float* grad, int64_t rows,
                                       int64_t v, int64_t valid, int64_t vocab_start,
                                       float z_loss, void* stream);

}

#ifndef CHIMED_BINDING

#include "device.cuh"
#include "launch.cuh"
#include "online_softmax.cuh"

namespace chimed {
namespace {

constexpr int kThreads = 256;

// The local column of a global id, or -1 where the id is another rank's, ignored or padding.
__device__ __forceinline__ int local_column(int64_t target, int64_t vocab_start, int valid) {
    const int64_t column = target - vocab_start;
    return column >= 0 && column < valid ? int(column) : -1;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_stats(const T* __restrict__ logits, const int64_t* __restrict__ target,
                        float* __restrict__ max, float* __restrict__ sum,
                        float* __restrict__ target_logit, int64_t v, int valid,
                        int64_t vocab_start) {
    const T* row = logits + int64_t(blockIdx.x) * v;
    const int vectors = valid / kWidth;
    MaxSum state = {-INFINITY, 0.f};
    for_each_vector<kWidth, 4>(row, vectors, [&](int, const Pack<T, kWidth>& pack) {
        float x[kWidth];
#pragma unroll
        for (int i = 0; i < kWidth; ++i) x[i] = float(pack.at[i]);
        state = absorb(state, x);
    });
    const int tail = vectors * kWidth + threadIdx.x;  // fewer than kWidth columns are left
    if (tail < valid) {
        const float x[1] = {float(row[tail])};
        state = absorb(state, x);
    }
    state = block_reduce(state, MaxSum{-INFINITY, 0.f}, Merge());
    if (threadIdx.x == 0) {
        const int column = local_column(target[blockIdx.x], vocab_start, valid);
        max[blockIdx.x] = state.max;
        sum[blockIdx.x] = state.sum;
        target_logit[blockIdx.x] = column < 0 ? 0.f : float(row[column]);
    }
}

// d/dx of grad * (lse - x[target] + z_loss * lse^2).
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward(T* logits, const int64_t* __restrict__ target,
                           const float* __restrict__ log_sum_exp, const float* __restrict__ grad,
                           int64_t v, int valid, int64_t vocab_start, float z_loss) {
    T* row = logits + int64_t(blockIdx.x) * v;
    const int vectors = int(v / kWidth);
    const float g = grad[blockIdx.x];
    const float lse = log_sum_exp[blockIdx.x];
    const float scale = g * (1.f + 2.f * z_loss * lse);
    const int hit = local_column(target[blockIdx.x], vocab_start, valid);
    if (g == 0.f) {
        const Pack<T, kWidth> zeros = {};
        for (int index = threadIdx.x; index < vectors; index += blockDim.x) {
            store<kWidth>(row, index, zeros);
        }
        return;
    }
    for_each_vector<kWidth, 2>(row, vectors, [&](int index, Pack<T, kWidth>& pack) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            const int column = index * kWidth + i;
            const float value = scale * fast_exp(float(pack.at[i]) - lse);
            pack.at[i] = T(column < valid ? value - (column == hit ? g : 0.f) : 0.f);
        }
        store<kWidth>(row, index, pack);
    });
}

int clamp_valid(int64_t valid, int64_t v) {
    return int(std::max<int64_t>(0, std::min(valid, v)));
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int chimed_cuda_cross_entropy_stats(int dtype, const void* logits,
                                               const int64_t* target, float* max, float* sum,
                                               float* target_logit, int64_t rows, int64_t v,
                                               int64_t valid, int64_t vocab_start, void* stream) {
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = kVectorWidth<T>;
        auto run = [&](auto kernel, int width) {
            return launch(kernel, rows, block_threads(v / width, kThreads), stream,
                          static_cast<const T*>(logits), target, max, sum, target_logit, v,
                          clamp_valid(valid, v), vocab_start);
        };
        if (can_vectorize<T>(v, {logits})) return run(cross_entropy_stats<T, kWidth>, kWidth);
        return run(cross_entropy_stats<T, 1>, 1);
    });
}

extern "C" int chimed_cuda_cross_entropy_backward(int dtype, void* logits, const int64_t* target,
                                                  const float* log_sum_exp, const float* grad,
                                                  int64_t rows, int64_t v, int64_t valid,
                                                  int64_t vocab_start, float z_loss,
                                                  void* stream) {
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = kVectorWidth<T>;
        auto run = [&](auto kernel, int width) {
            return launch(kernel, rows, block_threads(v / width, kThreads), stream,
                          static_cast<T*>(logits), target, log_sum_exp, grad, v,
                          clamp_valid(valid, v), vocab_start, z_loss);
        };
        if (can_vectorize<T>(v, {logits})) return run(cross_entropy_backward<T, kWidth>, kWidth);
        return run(cross_entropy_backward<T, 1>, 1);
    });
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

void require_short_rows(const Tensor& logits, const Tensor& target) {
    require_logits(logits, target);
    require(width_of(logits) < int64_t(1) << 30, "logits must have fewer than 2^30 columns");
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_stats(const Tensor& logits, const Tensor& target,
                                                       int64_t vocab_start, int64_t vocab_size) {
    const OnDevice here(logits, {&target});
    require_short_rows(logits, target);
    const int64_t rows = rows_of(logits);
    Tensor max = fp32_like(logits, {rows}), sum = fp32_like(logits, {rows}),
           target_logit = fp32_like(logits, {rows});
    check(chimed_cuda_cross_entropy_stats(
              dtype_of(logits), in(logits), in<int64_t>(target), out<float>(max), out<float>(sum),
              out<float>(target_logit), rows, width_of(logits),
              valid_columns(logits, vocab_start, vocab_size), vocab_start, here.stream()),
          "cross_entropy_stats");
    return {max, sum, target_logit};
}

void cross_entropy_backward_(const Tensor& logits, const Tensor& target, const Tensor& log_sum_exp,
                             const Tensor& grad, int64_t vocab_start, int64_t vocab_size,
                             double z_loss) {
    const OnDevice here(logits, {&target, &log_sum_exp, &grad});
    require_short_rows(logits, target);
    const int64_t rows = rows_of(logits);
    require_fp32(log_sum_exp, rows);
    require_fp32(grad, rows);
    check(chimed_cuda_cross_entropy_backward(
              dtype_of(logits), out(logits), in<int64_t>(target), in<float>(log_sum_exp),
              in<float>(grad), rows, width_of(logits),
              valid_columns(logits, vocab_start, vocab_size), vocab_start, float(z_loss),
              here.stream()),
          "cross_entropy_backward_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("cross_entropy_stats", TORCH_BOX(&cross_entropy_stats));
    m.impl("cross_entropy_backward_", TORCH_BOX(&cross_entropy_backward_));
}

}  // namespace chimed

#endif
