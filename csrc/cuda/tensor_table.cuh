// Many tensors in one launch: a table in the kernel's parameters cuts each tensor into chunks and
// a block finds the chunk that is its own.
//
// The parameters of a kernel live in constant memory and are captured at the launch: no copy to
// the device, nothing to keep alive, no limit on the chunks of a launch. A block searches the table
// (at most 7 steps) before 16384 elements of work.
#pragma once

#include <cuda_runtime.h>
#include <stdint.h>

#include <algorithm>

#include "launch.cuh"

namespace chimed {

constexpr int64_t kChunk = 16384;  // elements; 480 kB of AdamW's traffic

// kLists pointers per tensor (param, grad, ...) for up to kTensors tensors.
template <int kLists, int kTensors>
struct TensorTable {
    void* data[kLists][kTensors];
    int64_t size[kTensors];
    int first_block[kTensors];
    int dtype[kTensors];
    int count;

    // Adds a tensor; the caller sets `data` of the slot that is returned.
    int append(int64_t elements, int of_dtype) {
        first_block[count] = blocks();
        size[count] = elements;
        dtype[count] = of_dtype;
        return count++;
    }

    __host__ __device__ int blocks() const {
        if (count == 0) return 0;
        return first_block[count - 1] + int((size[count - 1] + kChunk - 1) / kChunk);
    }

    bool has_room(int64_t elements) const {
        return count < kTensors && blocks() + ceil_div(elements, kChunk) <= kMaxBlocks;
    }

    // The tensor whose chunks include `block`: the last that starts at or before it.
    __device__ int tensor_of(int block) const {
        int low = 0, high = count - 1;
        while (low < high) {
            const int middle = (low + high + 1) / 2;
            if (first_block[middle] <= block) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        return low;
    }
};

}  // namespace chimed
