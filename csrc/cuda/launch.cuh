// Host-side parts that every launcher shares: dtype dispatch, alignment, launch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "chimed_types.h"

namespace chimed {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // of gridDim.x

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Threads of a block whose loop strides over `items`: whole warps, none wholly idle.
inline int block_threads(int64_t items, int most) {
    return int(std::min<int64_t>(most, std::max<int64_t>(1, ceil_div(items, 32)) * 32));
}

// Calls body(T{}) with the type of a ChimedDtype.
template <typename Body>
int with_dtype(int dtype, Body body) {
    switch (dtype) {
        case CHIMED_F32: return body(float());
        case CHIMED_F16: return body(__half());
        case CHIMED_BF16: return body(__nv_bfloat16());
        default: return cudaErrorInvalidValue;
    }
}

// Calls body(std::true_type) or body(std::false_type): a run-time flag as a template argument.
template <typename Body>
int with_flag(bool flag, Body body) {
    return flag ? body(std::true_type()) : body(std::false_type());
}

// Whether 16-byte accesses may be used: every row starts on a boundary. A null pointer is aligned.
template <typename T>
bool can_vectorize(int64_t row_length, std::initializer_list<const void*> pointers) {
    if (row_length * int64_t(sizeof(T)) % 16 != 0) return false;
    for (const void* pointer : pointers) {
        if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    }
    return true;
}

// How one block holds a row in registers: `vecs` vectors (1, 2 or 4) in each of `threads` threads.
// vecs = 0: the row is too long, a looping kernel must take it.
struct RowPlan {
    int vecs, threads;
};

// The fewest vectors per thread that need at most `preferred` threads; beyond that, up to `most`
// threads of 4. Few fat threads keep more loads in flight per register than many lean ones.
inline RowPlan plan_row(int64_t vectors, int preferred, int most) {
    for (int vecs : {1, 2, 4}) {
        if (vectors <= int64_t(vecs) * preferred || (vecs == 4 && vectors <= 4ll * most)) {
            return {vecs, block_threads(ceil_div(vectors, vecs), most)};
        }
    }
    return {0, 0};
}

// Calls body(std::integral_constant<int, vecs>()) for the vecs of a RowPlan that fits.
template <typename Body>
int with_vecs(int vecs, Body body) {
    switch (vecs) {
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        case 4: return body(std::integral_constant<int, 4>());
        default: return cudaErrorInvalidValue;
    }
}

template <typename... Parameters, typename... Arguments>
int launch(void (*kernel)(Parameters...), int64_t blocks, dim3 threads, void* stream,
           Arguments... arguments) {
    if (blocks == 0) return cudaSuccess;
    if (blocks < 0 || blocks > kMaxBlocks) return cudaErrorInvalidValue;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = threads;
    config.stream = static_cast<cudaStream_t>(stream);
    const cudaError_t error =
        cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    if (error != cudaSuccess) cudaGetLastError();  // reported here: not also at torch's next check
    return error;
}

}  // namespace chimed
