// The L2 norm of many tensors as one chain of kernels: partial sums of squares, then one block adds
// them and takes the root. The host never waits; whoever reads the result does.
//
// Bytes moved: each element once. A chunk of 16384 is summed in fp32, the chunks in fp64, in a
// fixed order: the same tensors in the same order give the same bits.

#include "chimed_types.h"

extern "C" {

// How many floats of scratch the norm needs for tensors of these sizes (host).
int64_t chimed_cuda_l2_norm_partials(int64_t count, const int64_t* sizes);

// result: one float, the root of the sum of squares over all tensors. tensors, dtypes, sizes: host.
int chimed_cuda_l2_norm(int64_t count, const void* const* tensors, const int* dtypes,
                        const int64_t* sizes, float* partials, float* result, void* stream);

}

#ifndef CHIMED_BINDING

#include "device.cuh"
#include "launch.cuh"
#include "tensor_table.cuh"

namespace chimed {
namespace {

constexpr int kThreads = 512;
constexpr int kFinishThreads = 1024;

using Table = TensorTable<1, 128>;
static_assert(sizeof(Table) + 16 <= 4096, "the table must fit the parameters");

template <typename T>
__device__ __forceinline__ float sum_of_squares(const T* data, int64_t begin, int64_t end) {
    constexpr int kWidth = kVectorWidth<T>;
    static_assert(kChunk % kWidth == 0, "a chunk starts on a vector boundary of its tensor");
    const int count = int(end - begin);
    const bool vectorize = reinterpret_cast<uintptr_t>(data) % 16 == 0;
    const int vectors = vectorize ? count / kWidth : 0;
    float sum = 0.f;
    for_each_vector<kWidth, 4>(data + begin, vectors, [&](int, const Pack<T, kWidth>& pack) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sum += float(pack.at[i]) * float(pack.at[i]);
    });
    for (int i = vectors * kWidth + threadIdx.x; i < count; i += blockDim.x) {
        sum += float(data[begin + i]) * float(data[begin + i]);
    }
    return sum;
}

__global__ void __launch_bounds__(kThreads)
    l2_norm_partials(const __grid_constant__ Table table, float* __restrict__ partials) {
    const int tensor = table.tensor_of(blockIdx.x);
    const void* data = table.data[0][tensor];
    const int64_t begin = (blockIdx.x - table.first_block[tensor]) * kChunk;
    const int64_t left = table.size[tensor] - begin;
    const int64_t end = begin + (left < kChunk ? left : kChunk);
    float sum;
    switch (table.dtype[tensor]) {
        case CHIMED_F16: sum = sum_of_squares(static_cast<const __half*>(data), begin, end); break;
        case CHIMED_BF16:
            sum = sum_of_squares(static_cast<const __nv_bfloat16*>(data), begin, end);
            break;
        default: sum = sum_of_squares(static_cast<const float*>(data), begin, end); break;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kFinishThreads)
    l2_norm_finish(const float* __restrict__ partials, int64_t count, float* __restrict__ result) {
    __shared__ double of_thread[kFinishThreads];
    double sum = 0.0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += double(partials[i]);
    of_thread[threadIdx.x] = sum;
    for (int active = kFinishThreads / 2; active > 0; active /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < active) of_thread[threadIdx.x] += of_thread[threadIdx.x + active];
    }
    if (threadIdx.x == 0) *result = float(sqrt(of_thread[0]));
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int64_t chimed_cuda_l2_norm_partials(int64_t count, const int64_t* sizes) {
    int64_t partials = 0;
    for (int64_t i = 0; i < count; ++i) partials += ceil_div(sizes[i], kChunk);
    return partials;
}

extern "C" int chimed_cuda_l2_norm(int64_t count, const void* const* tensors, const int* dtypes,
                                   const int64_t* sizes, float* partials, float* result,
                                   void* stream) {
    int64_t done = 0;
    Table table = {};
    auto flush = [&]() {
        const int blocks = table.blocks();
        const int error =
            launch(l2_norm_partials, blocks, kThreads, stream, table, partials + done);
        done += blocks;
        table.count = 0;
        return error;
    };
    for (int64_t i = 0; i < count; ++i) {
        if (sizes[i] == 0) continue;
        if (!table.has_room(sizes[i])) {
            const int error = flush();
            if (error != cudaSuccess) return error;
        }
        table.data[0][table.append(sizes[i], dtypes[i])] = const_cast<void*>(tensors[i]);
    }
    const int error = flush();
    if (error != cudaSuccess) return error;
    return launch(l2_norm_finish, 1, kFinishThreads, stream, partials, done, result);
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

Tensor l2_norm(const std::vector<Tensor>& tensors) {
    require(!tensors.empty(), "l2_norm needs at least one tensor");
    const OnDevice here(tensors[0]);
    std::vector<const void*> pointers;
    std::vector<int> dtypes;
    std::vector<int64_t> sizes;
    for (const Tensor& x : tensors) {
        here.require_here(x);
        require_dense(x);
        pointers.push_back(in(x));
        dtypes.push_back(dtype_of(x));
        sizes.push_back(x.numel());
    }
    const int64_t count = int64_t(tensors.size());
    Tensor partials = fp32_like(tensors[0], {chimed_cuda_l2_norm_partials(count, sizes.data())});
    Tensor norm = fp32_like(tensors[0], {});
    check(chimed_cuda_l2_norm(count, pointers.data(), dtypes.data(), sizes.data(),
                              out<float>(partials), out<float>(norm), here.stream()),
          "l2_norm");
    return norm;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("l2_norm", TORCH_BOX(&l2_norm));
}

}  // namespace chimed

#endif
