// Gives each of a fixed set of keys a place of its own: a look-up is one probe without a search.
//
// Hash and displace: keys fall into small buckets, and each bucket has a seed, found by trying, to
// send its keys to free places (D. Belazzougui, F. Botelho, M. Dietzfelbinger, "Hash, displace,
// and compress", 2009). Any other key gets a place too: the owner compares what is stored there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace chimed {

class PerfectHash {
public:
    // Keys are distinct.
    explicit PerfectHash(const std::vector<uint64_t>& keys);

    // Places are 0 .. size-1, about 1.2 for each key.
    size_t size() const { return size_; }

    size_t operator()(uint64_t key) const {
        const uint64_t mixed = mix(key);
        return place(mixed, seeds_[mixed >> bucket_shift_]);
    }

private:
    static constexpr unsigned NUM_SEEDS = 256;

    static uint64_t mix(uint64_t key) { return key * 0x9E3779B97F4A7C15u; }

    size_t place(uint64_t mixed, uint32_t seed) const {
        const uint32_t folded = uint32_t(mixed >> 32) ^ uint32_t(mixed);
        return uint64_t(folded * (0x9E3779B1u + seed * 0x85EBCA6Au)) * size_ >> 32;
    }

    bool find_seeds(const std::vector<uint64_t>& keys);

    uint64_t size_;
    int bucket_shift_ = 63;
    std::vector<uint8_t> seeds_;
};

}  // namespace chimed
