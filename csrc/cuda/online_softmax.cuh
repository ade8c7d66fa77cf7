// Maximum and sum of exponentials in one pass (Milakov and Gimelshein, arXiv 1805.02867).
#pragma once

#include "device.cuh"

namespace chimed {

// sum = sum of exp(x - max) over what was absorbed; of nothing: -inf and 0.
struct MaxSum {
    float max, sum;
};

// What to subtract before exp: -inf minus -inf would be NaN where exp(-inf) = 0 is meant.
__device__ __forceinline__ float exp_shift(float max) { return max == -INFINITY ? 0.f : max; }

struct Merge {
    __device__ MaxSum operator()(const MaxSum& a, const MaxSum& b) const {
        const float max = fmaxf(a.max, b.max);
        const float shift = exp_shift(max);
        return {max, a.sum * fast_exp(a.max - shift) + b.sum * fast_exp(b.max - shift)};
    }
};

// One rescaling per vector: an exponential for each element and one more for all of them.
template <int kWidth>
__device__ __forceinline__ MaxSum absorb(const MaxSum& state, const float (&x)[kWidth]) {
    float max = state.max;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) max = fmaxf(max, x[i]);
    const float shift = exp_shift(max);
    float sum = state.sum * fast_exp(state.max - shift);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += fast_exp(x[i] - shift);
    return {max, sum};
}

__device__ __forceinline__ MaxSum from_lane(const MaxSum& value, int lane_xor) {
    return {from_lane(value.max, lane_xor), from_lane(value.sum, lane_xor)};
}

}  // namespace chimed
