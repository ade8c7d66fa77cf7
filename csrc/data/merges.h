// Byte pair encoding of one run of symbols: the highest score first, the leftmost of ties.
#pragma once

#include <cstdint>
#include <vector>

#include "bpe_model.h"
#include "trie.h"

namespace chimed {

// A piece, or a code point that occurs in pieces; numbered as in `pieces`, or after them.
using Symbol = uint32_t;

// What two neighbours become, for every two symbols that spell a piece together.
class MergeTable {
public:
    // `trie` holds every symbol, under its number.
    MergeTable(const std::vector<Piece>& pieces, const Trie& trie);

    // 1 + the piece that the two become, or 0.
    uint32_t find(Symbol left, Symbol right) const { return table_.find(left, right); }

    // The score of what `find` returned; that of 0 is below all others.
    float score(uint32_t found) const { return scores_[found]; }

private:
    static std::vector<StepTable::Step> list(const std::vector<Piece>& pieces, const Trie& trie);

    StepTable table_;
    std::vector<float> scores_;
};

// Applies the merges to runs; keeps its memory from one to the next.
class Merger {
public:
    explicit Merger(const MergeTable& table) : table_(table) {}

    // A symbol and where it starts in the run.
    struct Part {
        Symbol symbol;
        uint32_t begin;
    };

    // Merges `parts`, one symbol per code point, in place.
    void merge(std::vector<Part>& parts);

private:
    // Up to this length looking at all pairs each time is faster than a heap.
    static constexpr size_t SHORT = 48;

    void merge_short(std::vector<Part>& parts);
    void merge_long(std::vector<Part>& parts);
    uint32_t find(const std::vector<Part>& parts, uint32_t left) const;
    void push(const std::vector<Part>& parts, uint32_t left);

    const MergeTable& table_;
    std::vector<uint64_t> heap_;  // pairs by rank_of()
    std::vector<uint32_t> next_;
    std::vector<uint32_t> previous_;
};

}  // namespace chimed
