// Pairs of code points that may be adjacent in some key.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace chimed {

// A set of pairs in 128 KiB that may answer yes for a pair that it does not hold, but never no for
// one that it holds. U+0020 and U+2581 count as one.
class NeighbourSet {
public:
    NeighbourSet() : words_((size_t(1) << BITS) / 64) {}

    void add(char32_t left, char32_t right) {
        const uint64_t place = place_of(left, right);
        words_[place >> 6] |= uint64_t(1) << (place & 63);
    }

    // All neighbours within a key.
    void add_all(std::u32string_view key) {
        for (size_t i = 1; i < key.size(); ++i) add(key[i - 1], key[i]);
    }

    bool may_hold(char32_t left, char32_t right) const {
        const uint64_t place = place_of(left, right);
        return words_[place >> 6] >> (place & 63) & 1;
    }

private:
    static constexpr int BITS = 20;

    static char32_t same(char32_t point) { return point == U' ' ? U'\u2581' : point; }

    static uint64_t place_of(char32_t left, char32_t right) {
        const uint64_t key = uint64_t(same(left)) << 21 | same(right);
        return key * 0x9E3779B97F4A7C15u >> (64 - BITS);
    }

    std::vector<uint64_t> words_;
};

}  // namespace chimed
