// What the CPU side of every op needs beside `tensors.h`: the level in use, and how rows are cut.
//
// No result depends on the number of threads: a row gets the same bits in any range, and sums over
// rows are formed in blocks whose borders depend on the shape alone, then added in order. What can
// throw comes before a parallel region, because an exception must not leave one of its threads.
#pragma once

#include <algorithm>
#include <cmath>

#include "arguments.h"
#include "tensors.h"

namespace chimed {

using torch::stable::empty_like;
using torch::stable::parallel_for;

// The instruction set of the kernels: 0 baseline, 1 AVX2, 2 AVX-512. On other processors than
// x86-64 there is only the baseline, compiled for the vectors that the architecture always has.
int level_in_use();

// The fewest elements worth a thread: with fewer, waking it costs more than it saves.
constexpr int64_t kGrain = 16384;

inline int64_t grain(int64_t width) {
    return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, width));
}

}  // namespace chimed
