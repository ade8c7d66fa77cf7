// Best-fit decreasing: puts sequences into packs of a fixed number of tokens.
#pragma once

#include <cstdint>
#include <vector>

namespace chimed {

// Puts each sequence, the longest first, into the pack whose free room it fills best, or into a new
// one; among equal packs, the one touched last. Every length must be in [0, capacity].
//
// Writes the sequences' numbers pack by pack to order[0, count) and returns where each pack starts
// in it, then `count`. The number of packs depends on the multiset of lengths alone, since equal
// lengths are interchangeable. Time O(count); memory 16 bytes per sequence.
//
// D. S. Johnson, "Near-optimal bin packing algorithms" (1973): at most 11/9 of the optimum + 4.
std::vector<int64_t> pack(const int32_t* lengths, int32_t count, int32_t capacity, int32_t* order);

}  // namespace chimed
