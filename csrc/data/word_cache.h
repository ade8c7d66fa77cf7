// Ids of words that were encoded before.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace chimed {

// A table of fixed size: two places for each hash, of which the older one is given up. A word of
// more bytes or ids than an entry of one cache line holds is not kept.
class WordCache {
public:
    static constexpr size_t MAX_BYTES = 24;
    static constexpr size_t MAX_IDS = 8;
    static constexpr size_t SLACK = 8;  // bytes after a word that may be read

    struct Key {
        std::array<uint64_t, MAX_BYTES / 8> words;  // zeros behind the text
        uint32_t size;                              // of the text << 1 | whether it is a whole word
    };

    class Entry {
    public:
        const uint32_t* ids() const { return ids_.data(); }
        size_t count() const { return count_; }

    private:
        friend class WordCache;

        bool is_of(const Key& key) const {
            return ((words_[0] ^ key.words[0]) | (words_[1] ^ key.words[1])
                    | (words_[2] ^ key.words[2]) | (size_ ^ key.size)) == 0;
        }

        std::array<uint64_t, MAX_BYTES / 8> words_;
        uint32_t size_;  // 0: no entry
        uint32_t count_;
        std::array<uint32_t, MAX_IDS> ids_;
    };

    WordCache() : entries_(size_t(1) << BITS) {}

    // At most MAX_BYTES of text, of which SLACK bytes more may be read.
    static Key make_key(const uint8_t* text, size_t size, bool is_whole) {
        Key key{{}, uint32_t(size) << 1 | uint32_t(is_whole)};
        for (size_t at = 0; at < size; at += 8) {
            uint64_t word;
            std::memcpy(&word, text + at, 8);
            const size_t left = size - at;
            if (left < 8) word &= (uint64_t(1) << 8 * left) - 1;
            key.words[at / 8] = word;
        }
        return key;
    }

    // The word's entry, or null.
    const Entry* find(const Key& key) const {
        const Entry* const pair = &entries_[place(key)];
        if (pair[0].is_of(key)) return &pair[0];
        return pair[1].is_of(key) ? &pair[1] : nullptr;
    }

    // For a word that is not in the table.
    void insert(const Key& key, const uint32_t* ids, size_t count) {
        Entry* const pair = &entries_[place(key)];
        pair[1] = pair[0];
        pair[0].words_ = key.words;
        pair[0].size_ = key.size;
        pair[0].count_ = uint32_t(count);
        for (size_t i = 0; i < count; ++i) pair[0].ids_[i] = ids[i];
    }

private:
    static constexpr int BITS = 15;  // 2 MiB

    static size_t place(const Key& key) {
        uint64_t mixed = (key.words[0] ^ key.size) * 0x9E3779B97F4A7C15u;
        mixed = (mixed ^ mixed >> 32 ^ key.words[1]) * 0xC2B2AE3D27D4EB4Fu;
        mixed = (mixed ^ mixed >> 32 ^ key.words[2]) * 0x9E3779B97F4A7C15u;
        return size_t(mixed >> (64 - BITS)) & ~size_t(1);
    }

    std::vector<Entry> entries_;
};

static_assert(sizeof(WordCache::Entry) == 64, "an entry is a cache line");

}  // namespace chimed
