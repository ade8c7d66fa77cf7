// The vocabulary and merges of a tokenizer.json that holds byte-level BPE, read without a Python
// object for each of its half a million texts.
//
// Only a file that is laid out plainly is read; Python reads any other one, and says what is wrong
// with one that is damaged. The rest of the file is Python's in any case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "merges.h"

namespace chimed {

// Distinct strings in one block of memory, found by a hash table of open addressing.
class ByteStrings {
public:
    static constexpr uint32_t NONE = ~uint32_t(0);

    // Adds a string under a number that is not taken; `build` comes after the last one.
    void add(std::string_view text, uint32_t number);

    // False if two strings are equal.
    bool build();

    // The number of the string, or NONE.
    uint32_t find(std::string_view text) const;

    // The string of that number; empty if it has none.
    std::string_view operator[](uint32_t number) const {
        return std::string_view(text_).substr(spans_[number].begin, spans_[number].size);
    }

    // The largest number plus one.
    uint32_t size() const { return uint32_t(spans_.size()); }

private:
    struct Span {
        uint32_t begin = 0;
        uint32_t size = 0;
    };

    static uint64_t hash(std::string_view text);

    std::string text_;
    std::vector<Span> spans_;      // by number
    std::vector<uint64_t> slots_;  // high half of the hash << 32 | number + 1; 0: free
    size_t count_ = 0;
};

class ByteVocabulary {
public:
    static constexpr uint32_t NONE = ByteStrings::NONE;

    // Bytes of the file, from the first of a value to the one behind its last.
    struct Span {
        size_t begin;
        size_t end;
    };

    // Throws Unsupported where the file is not laid out plainly, where two entries share an id or a
    // spelling, and where a merge is not of the vocabulary.
    explicit ByteVocabulary(std::string_view file);

    // Bytes by id.
    const ByteStrings& tokens() const { return tokens_; }

    // Entries with a character that stands for no byte, by their spelling.
    const std::map<std::string, uint32_t>& unspelled() const { return unspelled_; }

    const std::vector<MergeList::Merge>& merges() const { return merges_; }

    // Number of entries, those of `unspelled` included, and the largest id plus one.
    size_t num_entries() const { return num_entries_; }
    uint32_t num_ids() const { return num_ids_; }

    // Where the vocabulary and the merges are in the file.
    Span vocab_span() const { return vocab_span_; }
    Span merges_span() const { return merges_span_; }

    // The id of the entry of that spelling in UTF-8, or NONE.
    uint32_t find(std::string_view spelling) const;

    // The spelling of an entry; empty where there is none.
    std::string spelling(uint32_t id) const;

    // All entries by id, "spelling id" on each line; an empty line; all merges, "left right".
    std::string listing() const;

private:
    void read_vocab(std::string_view file);
    void read_merges(std::string_view file);
    void add_merge(size_t cut, const std::string& both);

    ByteStrings tokens_;
    std::map<std::string, uint32_t> unspelled_;
    std::map<uint32_t, std::string> unspelled_by_id_;
    std::vector<MergeList::Merge> merges_;
    size_t num_entries_ = 0;
    uint32_t num_ids_ = 0;
    Span vocab_span_{};
    Span merges_span_{};
};

}  // namespace chimed
