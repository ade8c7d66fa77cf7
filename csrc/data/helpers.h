// Dataset helpers: the loops over documents, samples or a blend that would be slow in Python.
//
// Invariants: sizes and token counts are 64 bit; the GIL is released around each loop, so the
// arguments are plain pointers that the bindings keep alive; every result is a pure function of
// the arguments, on every platform, for as long as data made with it is in use.
#pragma once

#include <cstdint>

namespace chimed {

// Random order of a blend's or an epoch's elements, by key. See philox.h for the generator.
struct ShuffleKey {
    uint64_t seed;
    uint64_t epoch;
    uint64_t stream;
};

// Fills order[0, size) with a uniformly random permutation of 0 .. size-1 (Fisher-Yates).
template <typename Index>
void permutation(const ShuffleKey& key, int64_t size, Index* order);

// Cuts the documents, joined in `order`, into `samples` pieces of seq_length + 1 tokens whose
// starts are seq_length apart. Writes samples + 1 rows (place in `order`, token within that
// document); the last row is the place of the last sample's final token. Returns false if the
// documents end before it.
template <typename Index>
bool sample_index(const int32_t* lengths, const Index* order, int64_t documents,
                  int64_t seq_length, int64_t samples, int64_t* rows);

// Continues a weighted blend: entry i of the chunk takes the next sample of the data set that is
// furthest below its share. `counts` (samples taken so far, per data set) is read and advanced.
void blend_chunk(const double* weights, int64_t datasets, int64_t size, int64_t* counts,
                 int32_t* dataset_of, int64_t* sample_of);

}  // namespace chimed
