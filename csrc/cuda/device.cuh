// Device-side parts that every kernel shares: 16-byte vectors and block reductions.
//
// Invariant: arithmetic is fp32; fp16 and bf16 exist only in memory and in Packs. Reductions have
// a fixed order, so that a kernel gives the same bits in every run.
// Absent on purpose: atomics, clusters, asynchronous copies. A row of a language model fits the
// registers of one block, and that alone reaches the bytes that an op must move.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>

namespace chimed {

constexpr int kWarp = 32;
constexpr int kLineBytes = 128;  // of the caches

// Elements in the widest load that a thread can make, 128 bits.
template <typename T>
constexpr int kVectorWidth = 16 / int(sizeof(T));

template <typename T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
    T at[kWidth];
};

static_assert(sizeof(Pack<__half, 8>) == 16 && alignof(Pack<__half, 8>) == 16, "128 bits");
static_assert(sizeof(Pack<__nv_bfloat16, 8>) == 16, "128 bits");
static_assert(sizeof(Pack<float, 4>) == 16, "128 bits");

// Vector `index` of an array that starts on a vector boundary.
template <int kWidth, typename T>
__device__ __forceinline__ Pack<T, kWidth> load(const T* array, int64_t index) {
    return reinterpret_cast<const Pack<T, kWidth>*>(array)[index];
}

template <int kWidth, typename T>
__device__ __forceinline__ void store(T* array, int64_t index, const Pack<T, kWidth>& pack) {
    reinterpret_cast<Pack<T, kWidth>*>(array)[index] = pack;
}

// Starts to bring the line of `address` into the L2 cache: takes no register for its data and waits for
// nothing.
__device__ __forceinline__ void prefetch(const void* address) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
    static_cast<void>(*static_cast<const volatile char*>(address));  // it must be readable
#endif
}

// Calls body(index, vector) for the block's share of an array's vectors. kBatch loads are in flight
// before the first use: an unrolled loop does not do that, because its exit test comes between. So
// that no branch does either, the last batch loads the last vector again in place of those beyond.
template <int kWidth, int kBatch, typename T, typename Body>
__device__ __forceinline__ void for_each_vector(const T* array, int vectors, Body body) {
    const int stride = blockDim.x;
    for (int first = threadIdx.x; first < vectors; first += kBatch * stride) {
        Pack<T, kWidth> packs[kBatch];
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
            packs[b] = load<kWidth>(array, min(first + b * stride, vectors - 1));
        }
#pragma unroll
        for (int b = 0; b < kBatch; ++b) {
            if (first + b * stride < vectors) body(first + b * stride, packs[b]);
        }
    }
}

// exp(x) to a few 1e-7 for results that are sums or 16-bit numbers; what is below 2^-126 becomes 0.
// __expf would spend two more instructions on it, and the kernels that read two bytes for each
// exponential are nearly bound by instructions.
__device__ __forceinline__ float fast_exp(float x) {
#ifdef __CUDA_ARCH__
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
    return result;
#else
    return expf(x);
#endif
}

struct Add {
    __device__ float operator()(float a, float b) const { return a + b; }
};

struct Max {
    __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

__device__ __forceinline__ float from_lane(float value, int lane_xor) {
    return __shfl_xor_sync(0xffffffffu, value, lane_xor);
}

// All lanes get the result.
template <typename Value, typename Combine>
__device__ __forceinline__ Value warp_reduce(Value value, Combine combine) {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        value = combine(value, from_lane(value, offset));
    }
    return value;
}

// All threads get the result. The block is one-dimensional and made of whole warps, and all of its
// threads call this: the number of calls may not depend on the thread.
template <typename Value, typename Combine>
__device__ __forceinline__ Value block_reduce(Value value, Value identity, Combine combine) {
    __shared__ Value of_warp[kWarp];
    const int lane = threadIdx.x % kWarp;
    const int warps = blockDim.x / kWarp;
    value = warp_reduce(value, combine);
    if (warps == 1) return value;
    __syncthreads();  // of_warp is free: a previous call's readers are done
    if (lane == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    return warp_reduce(lane < warps ? of_warp[lane] : identity, combine);
}

__device__ __forceinline__ float block_sum(float value) { return block_reduce(value, 0.f, Add()); }

__device__ __forceinline__ float block_max(float value) {
    return block_reduce(value, -INFINITY, Max());
}

}  // namespace chimed
