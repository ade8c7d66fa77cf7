// Philox4x64-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3" (SC 2011). numpy's Philox is the same generator, and the tests
// compare the two word by word. It is written out here because numpy keeps its generators' raw
// words fixed over versions but not its shuffles, and an order must survive an upgrade.
#pragma once

#include <array>
#include <cstdint>

namespace chimed {

class Philox {
public:
    Philox(std::array<uint64_t, 2> key, std::array<uint64_t, 4> counter)
        : key_(key), counter_(counter) {}

    uint64_t next() {
        if (used_ == 4) {
            // Only the low word counts: 2^64 blocks are more than any order needs.
            ++counter_[0];
            block_ = rounds(counter_, key_);
            used_ = 0;
        }
        return block_[used_++];
    }

    // A uniform integer of [0, bound), without bias: D. Lemire, "Fast random integer generation
    // in an interval" (2019).
    uint64_t below(uint64_t bound) {
        Wide product = Wide(next()) * bound;
        if (uint64_t(product) < bound) {
            const uint64_t threshold = (0 - bound) % bound;
            while (uint64_t(product) < threshold) product = Wide(next()) * bound;
        }
        return uint64_t(product >> 64);
    }

private:
    __extension__ typedef unsigned __int128 Wide;
    using Block = std::array<uint64_t, 4>;

    static Block rounds(Block x, std::array<uint64_t, 2> key) {
        for (int round = 0; round < 10; ++round) {
            const Wide first = Wide(x[0]) * 0xD2E7470EE14C6C93u;
            const Wide second = Wide(x[2]) * 0xCA5A826395121157u;
            x = {uint64_t(second >> 64) ^ x[1] ^ key[0], uint64_t(second),
                 uint64_t(first >> 64) ^ x[3] ^ key[1], uint64_t(first)};
            key[0] += 0x9E3779B97F4A7C15u;
            key[1] += 0xBB67AE8584CAA73Bu;
        }
        return x;
    }

    std::array<uint64_t, 2> key_;
    Block counter_;
    Block block_{};
    int used_ = 4;
};

}  // namespace chimed
