#include "perfect_hash.h"

#include <algorithm>

namespace chimed {
namespace {

// Places of items sorted by their number, of which those of equal number keep their order.
template <typename NumberOf>
std::vector<uint32_t> count_starts(size_t num_items, size_t num_numbers, const NumberOf& number) {
    std::vector<uint32_t> starts(num_numbers + 1);
    for (size_t i = 0; i < num_items; ++i) ++starts[number(i) + 1];
    for (size_t n = 1; n <= num_numbers; ++n) starts[n] += starts[n - 1];
    return starts;
}

}  // namespace

PerfectHash::PerfectHash(const std::vector<uint64_t>& keys) : size_(keys.size() * 6 / 5 + 1) {
    // About 3 keys for a bucket.
    while ((size_t(3) << (64 - bucket_shift_)) < keys.size()) --bucket_shift_;
    const Buckets buckets = fill_buckets(keys);
    while (!find_seeds(buckets)) size_ += size_ / 8 + 1;
}

PerfectHash::Buckets PerfectHash::fill_buckets(const std::vector<uint64_t>& keys) const {
    const size_t num_buckets = size_t(1) << (64 - bucket_shift_);
    Buckets buckets;
    const auto bucket_of = [&](size_t i) { return mix(keys[i]) >> bucket_shift_; };
    buckets.starts = count_starts(keys.size(), num_buckets, bucket_of);
    buckets.keys.resize(keys.size());
    std::vector<uint32_t> next = buckets.starts;
    for (size_t i = 0; i < keys.size(); ++i) buckets.keys[next[bucket_of(i)]++] = mix(keys[i]);

    uint32_t fullest = 0;
    for (size_t bucket = 0; bucket < num_buckets; ++bucket) {
        const auto begin = buckets.keys.begin() + buckets.starts[bucket];
        const auto end = buckets.keys.begin() + buckets.starts[bucket + 1];
        fullest = std::max(fullest, uint32_t(end - begin));
        for (auto key = begin; key < end; ++key) {
            if (std::find(begin, key, *key) != key) throw RepeatedKey("two keys are equal");
        }
    }
    const auto emptiness = [&](size_t bucket) {
        return fullest - (buckets.starts[bucket + 1] - buckets.starts[bucket]);
    };
    next = count_starts(num_buckets, size_t(fullest) + 1, emptiness);
    buckets.order.resize(num_buckets);
    for (uint32_t bucket = 0; bucket < num_buckets; ++bucket) {
        buckets.order[next[emptiness(bucket)]++] = bucket;
    }
    return buckets;
}

// The fullest buckets choose first. Fails if no seed finds free places for a bucket.
bool PerfectHash::find_seeds(const Buckets& buckets) {
    seeds_.assign(buckets.order.size(), 0);
    std::vector<bool> is_taken(size());
    std::vector<size_t> places;
    const auto fits = [&](uint32_t bucket, unsigned seed) {
        places.clear();
        for (uint32_t i = buckets.starts[bucket]; i < buckets.starts[bucket + 1]; ++i) {
            const size_t at = place(buckets.keys[i], seed);
            if (is_taken[at] || std::count(places.begin(), places.end(), at)) return false;
            places.push_back(at);
        }
        return true;
    };
    for (const uint32_t bucket : buckets.order) {
        unsigned seed = 0;
        while (seed < NUM_SEEDS && !fits(bucket, seed)) ++seed;
        if (seed == NUM_SEEDS) return false;
        seeds_[bucket] = uint8_t(seed);
        for (const size_t at : places) is_taken[at] = true;
    }
    return true;
}

}  // namespace chimed
