#include <algorithm>

#include "helpers.h"

namespace chimed {

void blend_chunk(const double* weights, int64_t datasets, int64_t size, int64_t* counts,
                 int32_t* dataset_of, int64_t* sample_of) {
    int64_t taken = 0;
    for (int64_t d = 0; d < datasets; ++d) taken += counts[d];
    for (int64_t i = 0; i < size; ++i, ++taken) {
        // The first of ties wins, so the order of the data sets is part of the blend. Shares are
        // of the samples taken before this one, and of one sample at the start, as Megatron has it.
        const double share = double(std::max<int64_t>(taken, 1));
        int64_t chosen = 0;
        double largest = weights[0] * share - double(counts[0]);
        for (int64_t d = 1; d < datasets; ++d) {
            const double lack = weights[d] * share - double(counts[d]);
            if (lack > largest) {
                largest = lack;
                chosen = d;
            }
        }
        dataset_of[i] = int32_t(chosen);
        sample_of[i] = counts[chosen]++;
    }
}

}  // namespace chimed
