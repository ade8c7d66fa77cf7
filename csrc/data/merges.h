// Byte pair encoding of one run of symbols: the highest score first, the leftmost of ties.
#pragma once

#include <cstdint>
#include <vector>

#include "sentencepiece_model.h"
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

    // The piece that `find` returned, which was not 0.
    static Symbol symbol(uint32_t found) { return found - 1; }

private:
    static std::vector<StepTable::Step> list(const std::vector<Piece>& pieces, const Trie& trie);

    StepTable table_;
    std::vector<float> scores_;
};

// Merges of pairs of symbols in the order of preference, as a byte-level vocabulary lists them.
class MergeList {
public:
    struct Merge {
        Symbol left;
        Symbol right;
        Symbol result;
    };

    // Throws Unsupported if two merges are of the same pair, and beyond 2^20 of them or of symbols.
    explicit MergeList(const std::vector<Merge>& merges);

    // 1 + the number of the merge of the two in the list, or 0.
    uint32_t find(Symbol left, Symbol right) const { return table_.find(left, right); }

    // Exact, since numbers are below 2^24; that of 0 is below all others.
    static float score(uint32_t found) { return -float(found - 1); }

    Symbol symbol(uint32_t found) const { return results_[found - 1]; }

private:
    static StepTable make_table(const std::vector<Merge>& merges);

    StepTable table_;
    std::vector<Symbol> results_;
};

// A symbol and where it starts in the run.
struct MergePart {
    Symbol symbol;
    uint32_t begin;
};

// Applies the merges of a MergeTable or MergeList to runs; keeps its memory from one to the next.
template <typename Table>
class Merger {
public:
    explicit Merger(const Table& table) : table_(table) {}

    // Merges `parts`, one symbol per code point or byte, in place.
    void merge(std::vector<MergePart>& parts);

private:
    // Up to this length looking at all pairs each time is faster than a heap.
    static constexpr size_t SHORT = 48;

    void merge_short(std::vector<MergePart>& parts);
    void merge_long(std::vector<MergePart>& parts);
    uint32_t find(const std::vector<MergePart>& parts, uint32_t left) const;
    void push(const std::vector<MergePart>& parts, uint32_t left);

    const Table& table_;
    std::vector<uint64_t> heap_;  // pairs by rank_of()
    std::vector<uint32_t> next_;
    std::vector<uint32_t> previous_;
};

}  // namespace chimed
