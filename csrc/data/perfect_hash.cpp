#include "perfect_hash.h"

#include <algorithm>
#include <numeric>

namespace chimed {

PerfectHash::PerfectHash(const std::vector<uint64_t>& keys) : size_(keys.size() * 6 / 5 + 1) {
    // About 3 keys for a bucket.
    while ((size_t(3) << (64 - bucket_shift_)) < keys.size()) --bucket_shift_;
    while (!find_seeds(keys)) size_ += size_ / 8 + 1;
}

// The fullest buckets choose first. Fails if no seed finds free places for a bucket.
bool PerfectHash::find_seeds(const std::vector<uint64_t>& keys) {
    const size_t num_buckets = size_t(1) << (64 - bucket_shift_);
    std::vector<std::vector<uint64_t>> buckets(num_buckets);
    for (const uint64_t key : keys) buckets[mix(key) >> bucket_shift_].push_back(mix(key));
    std::vector<size_t> order(num_buckets);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&buckets](size_t a, size_t b) {
        return buckets[a].size() > buckets[b].size();
    });
    seeds_.assign(num_buckets, 0);
    std::vector<bool> is_taken(size());
    std::vector<size_t> places;
    const auto fits = [&](const std::vector<uint64_t>& bucket, unsigned seed) {
        places.clear();
        for (const uint64_t mixed : bucket) {
            const size_t at = place(mixed, seed);
            if (is_taken[at] || std::count(places.begin(), places.end(), at)) return false;
            places.push_back(at);
        }
        return true;
    };
    for (const size_t bucket : order) {
        unsigned seed = 0;
        while (seed < NUM_SEEDS && !fits(buckets[bucket], seed)) ++seed;
        if (seed == NUM_SEEDS) return false;
        seeds_[bucket] = uint8_t(seed);
        for (const size_t at : places) is_taken[at] = true;
    }
    return true;
}

}  // namespace chimed
