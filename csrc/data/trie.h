// Strings of code points, found at a place in text by the longest match.
//
// A step from a node by a code point is one probe of a hash table of 8-byte slots. The node after
// one code point is that code point, so the first step takes two at once. A node that spells a key
// has the key's value as its number, so no second table says what was found.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "perfect_hash.h"

namespace chimed {

// A number for each code point, 0 unless set; 256 code points share a page.
class PointTable {
public:
    PointTable() : page_of_(0x110000 >> 8, 0), pages_(1) {}

    uint32_t operator[](char32_t point) const { return pages_[page_of_[point >> 8]][point & 255]; }

    uint32_t& at(char32_t point) {
        uint16_t& page = page_of_[point >> 8];
        if (page == 0) {
            page = uint16_t(pages_.size());
            pages_.push_back({});
        }
        return pages_[page][point & 255];
    }

private:
    std::vector<uint16_t> page_of_;
    std::vector<std::array<uint32_t, 256>> pages_;
};

// Where each step from a node leads.
class StepTable {
public:
    struct Step {
        uint32_t from;
        char32_t point;
        uint32_t target;  // not 0
    };

    explicit StepTable(const std::vector<Step>& steps);

    // What the step leads to, or 0.
    uint32_t find(uint32_t from, char32_t point) const {
        const uint64_t key = key_of(from, point);
        const uint64_t slot = slots_[place_(key)];
        const uint32_t mask = 0 - uint32_t(slot >> TARGET_BITS == key);
        return uint32_t(slot) & ((1 << TARGET_BITS) - 1) & mask;
    }

private:
    static constexpr int TARGET_BITS = 21;

    static uint64_t key_of(uint32_t from, char32_t point) { return uint64_t(from) << 21 | point; }
    static std::vector<uint64_t> keys_of(const std::vector<Step>& steps);

    PerfectHash place_;
    std::vector<uint64_t> slots_;  // key << TARGET_BITS | target
};

class Trie {
public:
    static constexpr char32_t END = 0x1FFFFF;  // no code point: follows a text, ends a match
    static constexpr uint32_t NONE = ~uint32_t(0);

    struct Match {
        int length = 0;  // code points
        uint32_t value = NONE;
    };

    // A place in the text and the node that is reached from there.
    struct Walk {
        uint32_t place;
        uint32_t node;
    };

    using Key = std::pair<std::u32string_view, uint32_t>;

    // Keys are distinct and not empty, values distinct and below 2^20. Throws Unsupported beyond.
    explicit Trie(std::vector<Key> keys);

    bool is_empty() const { return first_mask_ == 0; }

    // False where no key starts like this; true says nothing. Touches no memory.
    bool may_start(char32_t point) const { return first_mask_ >> (point & 63) & 1; }

    // The key of one code point, of length 0 if there is none.
    Match single(char32_t point) const {
        const uint32_t first = first_[point] >> 1;
        return {first != 0, first - 1};
    }

    // The longest key at text[0]; END follows the text.
    Match longest(const char32_t* text) const {
        const uint32_t first = first_[*text];
        const Match match{first > 1, (first >> 1) - 1};
        return first & 1 ? longer(text, match) : match;
    }

    // Calls `take(length, value)` for each key at text[0], the shortest first; END follows the
    // text. Returns whether the first code point is one.
    template <typename Take>
    bool for_each_key(const char32_t* text, const Take& take) const {
        const uint32_t first = first_[*text];
        if (first > 1) take(1, (first >> 1) - 1);
        if (first & 1) {
            uint32_t target = pairs_.find(text[0], text[1]);
            for (int length = 2; target != 0; ++length) {
                const uint32_t number = target >> 1;
                if (number <= num_values_) take(length, number - 1);
                if (!(target & 1)) break;
                target = steps_.find(number, text[length]);
            }
        }
        return first > 1;
    }

    // `longest` at each of the first `size` places, but at least 1 long. One step is made from all
    // places before the next: such steps do not wait for one another's memory.
    void match_all(const char32_t* text, uint32_t size, Match* matches, Walk* walks) const {
        size_t count = 0;
        for (uint32_t i = 0; i < size; ++i) {
            const uint32_t first = first_[text[i]];
            matches[i] = {1, (first >> 1) - 1};
            walks[count] = {i, text[i]};
            count += first & 1;
        }
        count = step_all(pairs_, text + 1, 2, matches, walks, count);
        for (int length = 3; count != 0; ++length) {
            count = step_all(steps_, text + length - 1, length, matches, walks, count);
        }
    }

private:
    static constexpr uint32_t MAX_NODES = 1 << 20;

    // The longest key of two or more code points, else `match`. A step's target is the number of
    // the node << 1 | whether there are nodes after it.
    Match longer(const char32_t* text, Match match) const {
        uint32_t target = pairs_.find(text[0], text[1]);
        for (int length = 2; target != 0; ++length) {
            const uint32_t number = target >> 1;
            if (number <= num_values_) match = {length, number - 1};
            if (!(target & 1)) break;
            target = steps_.find(number, text[length]);
        }
        return match;
    }

    // One step of each walk by `text` at its place; keeps and counts those that continue.
    size_t step_all(const StepTable& table, const char32_t* text, int length, Match* matches,
                    Walk* walks, size_t count) const {
        size_t kept = 0;
        for (size_t k = 0; k < count; ++k) {
            const Walk walk = walks[k];
            const uint32_t target = table.find(walk.node, text[walk.place]);
            const uint32_t number = target >> 1;
            // Whether this is a key cannot be predicted, so no branch depends on it.
            const uint32_t mask = 0 - uint32_t(number - 1 < num_values_);  // 0 for number 0, too
            Match& match = matches[walk.place];
            match.length ^= (match.length ^ length) & mask;
            match.value ^= (match.value ^ (number - 1)) & mask;
            walks[kept] = {walk.place, number};
            kept += target & 1;
        }
        return kept;
    }

    class Builder;

    explicit Trie(Builder&& builder);

    uint32_t num_values_;
    uint64_t first_mask_;
    PointTable first_;  // (value + 1 of the key of one code point) << 1 | whether there are longer
    StepTable pairs_;   // from a code point
    StepTable steps_;   // from a node
};

}  // namespace chimed
