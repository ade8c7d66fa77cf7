#include "trie.h"

#include <algorithm>

#include "sentencepiece_model.h"

namespace chimed {

StepTable::StepTable(const std::vector<Step>& steps)
    : place_(keys_of(steps)), slots_(place_.size()) {
    for (const Step& step : steps) {
        const uint64_t key = key_of(step.from, step.point);
        slots_[place_(key)] = key << TARGET_BITS | step.target;
    }
}

std::vector<uint64_t> StepTable::keys_of(const std::vector<Step>& steps) {
    std::vector<uint64_t> keys;
    keys.reserve(steps.size());
    for (const Step& step : steps) keys.push_back(key_of(step.from, step.point));
    return keys;
}

// Takes the keys in their order, so that each shares its first steps with the one before, and a key
// comes before those that it is a prefix of.
class Trie::Builder {
public:
    explicit Builder(std::vector<Key> keys) {
        std::sort(keys.begin(), keys.end());
        for (const Key& key : keys) num_values = std::max(num_values, key.second + 1);
        if (num_values >= MAX_NODES) throw Unsupported("it has over a million pieces");
        num_nodes_ = num_values;
        std::u32string_view previous;
        for (const Key& key : keys) {
            insert(key.first, key.second, previous);
            previous = key.first;
        }
    }

    uint32_t num_values = 0;
    uint64_t first_mask = 0;
    PointTable first;
    std::vector<StepTable::Step> pairs;
    std::vector<StepTable::Step> steps;

private:
    void insert(std::u32string_view key, uint32_t value, std::u32string_view previous) {
        first_mask |= uint64_t(1) << (key[0] & 63);
        first.at(key[0]) |= key.size() == 1 ? (value + 1) << 1 : 1;
        const size_t least = std::min(key.size(), previous.size());
        const auto shared = size_t(
            std::mismatch(key.begin(), key.begin() + least, previous.begin()).first - key.begin());
        path_.resize(key.size());
        for (size_t i = std::max<size_t>(shared, 1); i < key.size(); ++i) {
            const bool is_last = i + 1 == key.size();
            const uint32_t node = is_last ? value + 1 : ++num_nodes_;
            if (node >= MAX_NODES) throw Unsupported("its pieces have over a million prefixes");
            if (i > 1) level(i - 1)[path_[i - 1]].target |= 1;
            const uint32_t from = i == 1 ? key[0] : level(i - 1)[path_[i - 1]].target >> 1;
            path_[i] = level(i).size();
            level(i).push_back({from, key[i], node << 1});
        }
    }

    std::vector<StepTable::Step>& level(size_t depth) { return depth == 1 ? pairs : steps; }

    uint32_t num_nodes_ = 0;    // numbers given so far, those of the values included
    std::vector<size_t> path_;  // the steps of the last key, by place in their level
};

Trie::Trie(std::vector<Key> keys) : Trie(Builder(std::move(keys))) {}

Trie::Trie(Builder&& builder)
    : num_values_(builder.num_values),
      first_mask_(builder.first_mask),
      first_(std::move(builder.first)),
      pairs_(builder.pairs),
      steps_(builder.steps) {}

}  // namespace chimed
