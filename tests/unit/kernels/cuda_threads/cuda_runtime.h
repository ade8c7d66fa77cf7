// A stand-in for the CUDA headers in which each thread of a block is a thread of the host, so that
// ThreadSanitizer sees which accesses to shared memory no barrier separates.
//
// Blocks run one after another, the first two of a grid: the others do the same, and starting a
// thousand threads takes a second here. A barrier of the block orders memory; a shuffle does not, as on a
// device: its own barrier is hidden from the sanitizer.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

extern "C" void AnnotateIgnoreSyncBegin(const char* file, int line);
extern "C" void AnnotateIgnoreSyncEnd(const char* file, int line);

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline thread_local dim3 threadIdx;
inline dim3 blockIdx, blockDim, gridDim;

namespace threads {

constexpr int kWarp = 32, kMost = 1024;
constexpr unsigned kBlocks = 2;

inline pthread_barrier_t of_block, of_warp[kMost / kWarp];
inline char exchanged[kMost][16];
inline thread_local int mine;

template <typename Value>
__attribute__((no_sanitize("thread"))) Value shuffle_xor(Value value, int lane_xor) {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    __builtin_memcpy(exchanged[mine], &value, sizeof(Value));
    pthread_barrier_wait(&of_warp[mine / kWarp]);
    __builtin_memcpy(&value, exchanged[mine ^ lane_xor], sizeof(Value));
    pthread_barrier_wait(&of_warp[mine / kWarp]);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    return value;
}

}  // namespace threads

#define __shfl_xor_sync(mask, value, lane_xor) threads::shuffle_xor(value, lane_xor)

inline void __syncthreads() { pthread_barrier_wait(&threads::of_block); }
using std::min;

inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    const int count = int(blockDim.x * blockDim.y * blockDim.z);
    for (unsigned block = 0; block < std::min(gridDim.x, threads::kBlocks); ++block) {
        blockIdx = dim3(block, 0, 0);
        pthread_barrier_init(&threads::of_block, nullptr, count);
        const int warps = (count + threads::kWarp - 1) / threads::kWarp;
        for (int warp = 0; warp < warps; ++warp) {
            const int lanes = std::min(threads::kWarp, count - warp * threads::kWarp);
            pthread_barrier_init(&threads::of_warp[warp], nullptr, lanes);
        }
        std::vector<std::thread> running;
        for (int i = 0; i < count; ++i) {
            running.emplace_back([&, i] {
                const unsigned row = i / blockDim.x;
                threadIdx = dim3(i % blockDim.x, row % blockDim.y, row / blockDim.y);
                threads::mine = i;
                kernel(arguments...);
            });
        }
        for (std::thread& thread : running) thread.join();
    }
    return cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "threads"; }

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 2;
    return cudaSuccess;
}
