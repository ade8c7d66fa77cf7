#include "merges.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace chimed {
namespace {

constexpr uint32_t NOWHERE = ~uint32_t(0);

// A number that is higher for a higher score and, among equal scores, for a place further left.
uint64_t rank_of(float score, uint32_t left) {
    score += 0.0f;  // -0 becomes 0
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof(bits));
    bits ^= bits >> 31 ? 0xFFFFFFFFu : 0x80000000u;
    return uint64_t(bits) << 32 | uint32_t(~left);
}

// The symbol that spells the text exactly, or NONE. END follows the text.
Symbol find_symbol(const Trie& trie, const char32_t* text, int length) {
    const Trie::Match match = trie.longest(text);
    return match.length == length ? match.value : Trie::NONE;
}

}  // namespace

MergeTable::MergeTable(const std::vector<Piece>& pieces, const Trie& trie)
    : table_(list(pieces, trie)), scores_{-std::numeric_limits<float>::infinity()} {
    for (const Piece& piece : pieces) scores_.push_back(piece.score);
}

std::vector<StepTable::Step> MergeTable::list(const std::vector<Piece>& pieces, const Trie& trie) {
    std::vector<StepTable::Step> merges;
    std::u32string text;
    std::vector<Symbol> heads;
    for (Symbol index = 0; index < pieces.size(); ++index) {
        const Piece& piece = pieces[index];
        const int length = int(piece.text.size());
        if (!piece.is_spelled() || length < 2) continue;
        heads.clear();
        for (int cut = 1; cut < length; ++cut) {
            text.assign(piece.text, 0, cut).push_back(Trie::END);
            heads.push_back(find_symbol(trie, text.data(), cut));
        }
        text.assign(piece.text).push_back(Trie::END);
        for (int cut = 1; cut < length; ++cut) {
            if (heads[cut - 1] == Trie::NONE) continue;
            const Symbol tail = find_symbol(trie, text.data() + cut, length - cut);
            if (tail != Trie::NONE) merges.push_back({heads[cut - 1], tail, index + 1});
        }
    }
    return merges;
}

MergeList::MergeList(const std::vector<Merge>& merges) : table_(make_table(merges)) {
    results_.reserve(merges.size());
    for (const Merge& merge : merges) results_.push_back(merge.result);
}

StepTable MergeList::make_table(const std::vector<Merge>& merges) {
    constexpr uint32_t MOST = 1 << 20;
    if (merges.size() >= MOST) throw Unsupported("it has over a million merges");
    std::vector<StepTable::Step> steps;
    steps.reserve(merges.size());
    for (const Merge& merge : merges) {
        if (std::max({merge.left, merge.right, merge.result}) >= MOST) {
            throw Unsupported("it has ids of over a million");
        }
        steps.push_back({merge.left, merge.right, uint32_t(steps.size() + 1)});
    }
    try {
        return StepTable(steps);
    } catch (const RepeatedKey&) {
        throw Unsupported("two merges are of the same pair");
    }
}

template <typename Table>
void Merger<Table>::merge(std::vector<MergePart>& parts) {
    if (parts.size() <= SHORT) {
        merge_short(parts);
    } else {
        merge_long(parts);
    }
}

template <typename Table>
void Merger<Table>::merge_short(std::vector<MergePart>& parts) {
    uint32_t found[SHORT];
    float scores[SHORT];
    size_t size = parts.size();
    const auto look = [&](size_t i) {
        found[i] = table_.find(parts[i].symbol, parts[i + 1].symbol);
        scores[i] = table_.score(found[i]);
    };
    for (size_t i = 0; i + 1 < size; ++i) look(i);
    while (size > 1) {
        // The first of ties.
        const size_t best = std::max_element(scores, scores + size - 1) - scores;
        if (found[best] == 0) break;
        parts[best].symbol = table_.symbol(found[best]);
        --size;
        for (size_t i = best + 1; i < size; ++i) {
            parts[i] = parts[i + 1];
            found[i] = found[i + 1];
            scores[i] = scores[i + 1];
        }
        if (best > 0) look(best - 1);
        if (best + 1 < size) look(best);
    }
    parts.resize(size);
}

// A heap of pairs over a linked list, O(n log n). An entry is only a rank: if the pair that is now
// at its place has another rank, the entry's own pair is gone.
template <typename Table>
void Merger<Table>::merge_long(std::vector<MergePart>& parts) {
    const uint32_t size = uint32_t(parts.size());
    next_.resize(size);
    previous_.resize(size);
    heap_.clear();
    for (uint32_t i = 0; i < size; ++i) {
        previous_[i] = i - 1;  // NOWHERE for the first
        next_[i] = i + 1 < size ? i + 1 : NOWHERE;
    }
    for (uint32_t i = 0; i < size; ++i) push(parts, i);
    while (!heap_.empty()) {
        const uint64_t top = heap_.front();
        std::pop_heap(heap_.begin(), heap_.end());
        heap_.pop_back();
        const uint32_t left = ~uint32_t(top);
        const uint32_t found = find(parts, left);
        if (found == 0 || rank_of(table_.score(found), left) != top) continue;
        const uint32_t right = next_[left];
        parts[left].symbol = table_.symbol(found);
        parts[right].symbol = Trie::NONE;
        next_[left] = next_[right];
        if (next_[left] != NOWHERE) previous_[next_[left]] = left;
        if (previous_[left] != NOWHERE) push(parts, previous_[left]);
        push(parts, left);
    }
    parts.erase(std::remove_if(parts.begin(), parts.end(),
                               [](const MergePart& part) { return part.symbol == Trie::NONE; }),
                parts.end());
}

// What the symbol and the next one become, as `Table::find` returns it.
template <typename Table>
uint32_t Merger<Table>::find(const std::vector<MergePart>& parts, uint32_t left) const {
    if (parts[left].symbol == Trie::NONE || next_[left] == NOWHERE) return 0;
    return table_.find(parts[left].symbol, parts[next_[left]].symbol);
}

template <typename Table>
void Merger<Table>::push(const std::vector<MergePart>& parts, uint32_t left) {
    const uint32_t found = find(parts, left);
    if (found == 0) return;
    heap_.push_back(rank_of(table_.score(found), left));
    std::push_heap(heap_.begin(), heap_.end());
}

template class Merger<MergeTable>;
template class Merger<MergeList>;

}  // namespace chimed
