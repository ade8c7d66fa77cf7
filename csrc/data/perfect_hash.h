// Gives each of a fixed set of keys a place of its own: a look-up is one probe without a search.
//
// Hash and displace: keys fall into small buckets, and each bucket has a seed, found by trying, to
// send its keys to free places (D. Belazzougui, F. Botelho, M. Dietzfelbinger, "Hash, displace,
// and compress", 2009). Any other key gets a place too: the owner compares what is stored there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

namespace chimed {

struct RepeatedKey : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

class PerfectHash {
public:
    // Throws RepeatedKey if two keys are equal.
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

    struct Buckets {
        std::vector<uint64_t> keys;    // mixed, bucket by bucket
        std::vector<uint32_t> starts;  // of each bucket among them, and their number
        std::vector<uint32_t> order;   // the fullest first
    };

    Buckets fill_buckets(const std::vector<uint64_t>& keys) const;
    bool find_seeds(const Buckets& buckets);

    uint64_t size_;
    int bucket_shift_ = 63;
    std::vector<uint8_t> seeds_;
};

}  // namespace chimed
