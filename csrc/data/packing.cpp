#include "packing.h"

#include <cstddef>

namespace chimed {

namespace {

// The packs by free room: a stack of packs for each size of room, and a bitmap of the sizes in use.
class OpenPacks {
public:
    explicit OpenPacks(int32_t capacity)
        : top_(size_t(capacity) + 1, kNone), words_(size_t(capacity) / 64 + 1, 0) {}

    void put(int32_t pack, int32_t room) {
        if (size_t(pack) == below_.size()) below_.push_back(kNone);
        below_[size_t(pack)] = top_[size_t(room)];
        top_[size_t(room)] = pack;
        words_[size_t(room) / 64] |= uint64_t(1) << (room % 64);
    }

    // The smallest room of at least `length` that any pack has, or -1.
    int32_t best_room(int32_t length) const {
        size_t word = size_t(length) / 64;
        uint64_t bits = words_[word] & (~uint64_t(0) << (length % 64));
        while (bits == 0) {
            if (++word == words_.size()) return -1;
            bits = words_[word];
        }
        return int32_t(word * 64) + __builtin_ctzll(bits);
    }

    int32_t take(int32_t room) {
        const int32_t pack = top_[size_t(room)];
        top_[size_t(room)] = below_[size_t(pack)];
        if (top_[size_t(room)] == kNone) {
            words_[size_t(room) / 64] &= ~(uint64_t(1) << (room % 64));
        }
        return pack;
    }

private:
    static constexpr int32_t kNone = -1;
    std::vector<int32_t> top_;    // by room
    std::vector<int32_t> below_;  // by pack: the next one of the same room
    std::vector<uint64_t> words_;
};

// Sequence numbers by decreasing length; equal lengths keep their order.
std::vector<int32_t> by_decreasing_length(const int32_t* lengths, int32_t count,
                                          int32_t capacity) {
    std::vector<int32_t> first(size_t(capacity) + 2, 0);  // by capacity - length
    for (int32_t i = 0; i < count; ++i) ++first[size_t(capacity - lengths[i]) + 1];
    for (size_t k = 1; k < first.size(); ++k) first[k] += first[k - 1];
    std::vector<int32_t> sorted(size_t(count), 0);
    for (int32_t i = 0; i < count; ++i) {
        sorted[size_t(first[size_t(capacity - lengths[i])]++)] = i;
    }
    return sorted;
}

}  // namespace

std::vector<int64_t> pack(const int32_t* lengths, int32_t count, int32_t capacity,
                          int32_t* order) {
    const std::vector<int32_t> sorted = by_decreasing_length(lengths, count, capacity);
    OpenPacks open(capacity);
    std::vector<int32_t> pack_of(size_t(count), 0);
    std::vector<int64_t> starts(1, 0);  // first the sizes, one place up
    for (const int32_t sequence : sorted) {
        const int32_t length = lengths[sequence];
        int32_t room = open.best_room(length);
        int32_t chosen = int32_t(starts.size()) - 1;
        if (room < 0) {
            room = capacity;
            starts.push_back(0);
        } else {
            chosen = open.take(room);
        }
        open.put(chosen, room - length);
        pack_of[size_t(sequence)] = chosen;
        ++starts[size_t(chosen) + 1];
    }
    for (size_t k = 1; k < starts.size(); ++k) starts[k] += starts[k - 1];
    std::vector<int64_t> next(starts.begin(), starts.end());
    for (const int32_t sequence : sorted) {
        order[next[size_t(pack_of[size_t(sequence)])]++] = sequence;
    }
    return starts;
}

}  // namespace chimed
