// A stand-in for the CUDA headers that runs csrc/cuda on a CPU, compiled by g++ -x c++.
//
// Blocks run one after another; the threads of a block are fibers that switch only at barriers and
// shuffles. So logic, indices and barriers are checked, and no timing or memory model: a missing
// barrier shows when the two thread orders (chimed_emulation_reverse) disagree, a barrier that not
// all threads reach is reported as an error instead of a hang. A launch is refused that a device would
// refuse: beyond its limits or those of __launch_bounds__, or on another stream than the caller's.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)  // checked by emulation::at_most, which the harness adds to kernels
#define __grid_constant__
#define __shared__ static  // one block at a time, so one copy is enough

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidConfiguration = 9,   // beyond the limits of a device
    cudaErrorInvalidResourceHandle = 400,  // another stream
    cudaErrorLaunchOutOfResources = 701,   // more threads than __launch_bounds__ promised
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719,
};
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
using cudaStream_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kWarp = 32, kMostThreads = 1024;
constexpr int64_t kMostBlocks[3] = {0x7fffffff, 65535, 65535};  // of a grid, x, y, z
constexpr unsigned kMostOfBlock[3] = {1024, 1024, 64};
constexpr size_t kSharedBytes = 48 * 1024;  // without asking for more
constexpr size_t kStackBytes = 128 * 1024;

struct Barrier {
    int expected = 0, arrived = 0;
    int64_t generation = 0;
};

// ucontext starts a fiber on its stack; later switches are by longjmp, which makes no system call.
struct Fiber {
    ucontext_t context;
    jmp_buf here;
    std::vector<char> stack;
    bool started = false, finished = false;
};

struct Machine {
    std::vector<Fiber> fibers = std::vector<Fiber>(kMostThreads);
    Barrier block_barrier, warp_barriers[kMostThreads / kWarp];
    char exchanged[kMostThreads][16];
    jmp_buf scheduler;
    std::function<void()> kernel;
    int current = 0, threads = 0;
    int64_t progress = 0;
    int64_t last_blocks = INT64_MAX;  // of a grid that run
    cudaStream_t stream = nullptr;    // of every launch
    bool reverse = false, failed = false, misaligned = false, too_many = false;
};

inline Machine machine;

inline void yield() {
    if (_setjmp(machine.fibers[machine.current].here) == 0) _longjmp(machine.scheduler, 1);
}

inline void wait(Barrier& barrier) {
    const int64_t generation = barrier.generation;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        ++machine.progress;
    } else {
        while (barrier.generation == generation) yield();
    }
}

inline void fiber_main() {
    machine.kernel();
    machine.fibers[machine.current].finished = true;
    ++machine.progress;
    yield();
}

inline void resume(int thread) {
    machine.current = thread;
    const unsigned row = thread / blockDim.x;
    threadIdx = dim3(thread % blockDim.x, row % blockDim.y, row / blockDim.y);
    if (_setjmp(machine.scheduler) != 0) return;
    Fiber& fiber = machine.fibers[thread];
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.context);
}

inline void start_block() {
    machine.block_barrier = {machine.threads, 0, 0};
    for (int warp = 0; warp * kWarp < machine.threads; ++warp) {
        machine.warp_barriers[warp] = {std::min(kWarp, machine.threads - warp * kWarp), 0, 0};
    }
    for (int thread = 0; thread < machine.threads; ++thread) {
        Fiber& fiber = machine.fibers[thread];
        fiber.stack.resize(kStackBytes);
        fiber.started = fiber.finished = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
    }
}

// Resumes the threads of a warp until all of them wait for another warp or have finished.
inline void run_warp(int warp) {
    const int first = warp * kWarp, count = std::min(kWarp, machine.threads - first);
    for (int64_t before = -1; machine.progress != before && !machine.failed;) {
        before = machine.progress;
        for (int i = 0; i < count; ++i) {
            const int thread = first + (machine.reverse ? count - 1 - i : i);
            if (!machine.fibers[thread].finished) resume(thread);
        }
    }
}

// A warp runs ahead of the others as far as the barriers let it, which is what uncovers a missing
// one. A round over all warps without progress is a deadlock.
inline void run_block() {
    start_block();
    const int warps = (machine.threads + kWarp - 1) / kWarp;
    for (int64_t before = -1; machine.progress != before && !machine.failed;) {
        before = machine.progress;
        for (int i = 0; i < warps; ++i) run_warp(machine.reverse ? warps - 1 - i : i);
    }
    for (int i = 0; i < machine.threads; ++i) machine.failed |= !machine.fibers[i].finished;
}

// A full-mask shuffle needs all 32 lanes to exist, as on a device.
template <typename Value>
Value shuffle_xor(Value value, int lane_xor) {
    static_assert(sizeof(Value) <= sizeof(machine.exchanged[0]), "one exchange slot");
    const int mine = machine.current;
    Barrier& barrier = machine.warp_barriers[mine / kWarp];
    if (barrier.expected != kWarp) machine.failed = true;
    std::memcpy(machine.exchanged[mine], &value, sizeof(Value));
    wait(barrier);
    std::memcpy(&value, machine.exchanged[mine ^ lane_xor], sizeof(Value));
    wait(barrier);
    return value;
}

// The first statement of a kernel, by its __launch_bounds__.
inline void at_most(int threads) { machine.too_many |= machine.threads > threads; }

inline cudaError_t check_launch(const cudaLaunchConfig_t& config) {
    const unsigned grid[3] = {config.gridDim.x, config.gridDim.y, config.gridDim.z};
    const unsigned block[3] = {config.blockDim.x, config.blockDim.y, config.blockDim.z};
    int64_t threads = 1;
    for (int axis = 0; axis < 3; ++axis) {
        threads *= block[axis];
        if (grid[axis] < 1 || int64_t(grid[axis]) > kMostBlocks[axis] || block[axis] < 1 ||
            block[axis] > kMostOfBlock[axis]) {
            return cudaErrorInvalidConfiguration;
        }
    }
    if (threads > kMostThreads || grid[1] != 1 || grid[2] != 1) {  // the loop below is along x
        return cudaErrorInvalidConfiguration;
    }
    if (config.dynamicSmemBytes > kSharedBytes) return cudaErrorInvalidConfiguration;
    if (config.stream != machine.stream) return cudaErrorInvalidResourceHandle;
    return cudaSuccess;
}

}  // namespace emulation

// Called by code that was compiled with -fsanitize=alignment, before an access that could be fatal: the
// thread does not get there.
extern "C" inline __attribute__((used)) void __ubsan_handle_type_mismatch_v1(void*, void*) {
    emulation::machine.misaligned = emulation::machine.failed = true;
    emulation::yield();
}

#define __shfl_xor_sync(mask, value, lane_xor) emulation::shuffle_xor(value, lane_xor)

inline void __syncthreads() { emulation::wait(emulation::machine.block_barrier); }
using std::min;

inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    using namespace emulation;
    const cudaError_t refused = check_launch(*config);
    if (refused != cudaSuccess) return refused;
    machine.threads = int(config->blockDim.x * config->blockDim.y * config->blockDim.z);
    machine.failed = machine.misaligned = machine.too_many = false;
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    machine.kernel = [&] { kernel(arguments...); };
    const int64_t first = std::max<int64_t>(0, gridDim.x - machine.last_blocks);
    for (unsigned i = unsigned(first); i < gridDim.x && !machine.failed; ++i) {
        blockIdx = dim3(machine.reverse ? gridDim.x - 1 - (i - unsigned(first)) : i, 0, 0);
        run_block();
    }
    if (machine.too_many) return cudaErrorLaunchOutOfResources;
    if (machine.misaligned) return cudaErrorMisalignedAddress;
    return machine.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "emulation"; }

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

// Few enough that a persistent grid takes several rows per block in a small test.
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 2;
    return cudaSuccess;
}

// Whether threads and blocks run from the last to the first.
extern "C" inline __attribute__((used)) void chimed_emulation_reverse(int reverse) {
    emulation::machine.reverse = reverse != 0;
}

// The stream on which every launch must be.
extern "C" inline __attribute__((used)) void chimed_emulation_stream(void* stream) {
    emulation::machine.stream = stream;
}

// Runs only so many blocks of a grid, its last: rows far into a large tensor.
extern "C" inline __attribute__((used)) void chimed_emulation_last_blocks(int64_t blocks) {
    emulation::machine.last_blocks = blocks;
}
