// sentencepiece's BPE and unigram models: the same ids, several times as fast.
//
// BPE: text is cut wherever no piece of the vocabulary that occurs in it spans the place: no merge
// can cross it, so the runs between are encoded one by one. Most runs are one or two code points or
// one piece, and their ids are known without merging. Unigram: unigram.h.
//
// A long text is processed in windows, so that it needs little memory besides that of its ids.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "sentencepiece_model.h"
#include "id_buffer.h"
#include "merges.h"
#include "neighbours.h"
#include "normalizer.h"
#include "text.h"
#include "trie.h"
#include "unigram.h"

namespace chimed {

struct AddedToken {
    std::u32string text;
    uint32_t id;
};

class SentencePieceEncoder {
public:
    // `added_tokens` are cut out of the text first, the longest of the leftmost matches. Throws
    // Unsupported where sentencepiece's ids cannot be guaranteed. A text of more than `window` code
    // points is cut; a code point takes up to 36 bytes.
    SentencePieceEncoder(std::string_view model, std::vector<AddedToken> added_tokens,
                         int64_t window);
    SentencePieceEncoder(const SentencePieceEncoder&) = delete;  // its parts refer to one another

    // Appends the ids of `count` texts to `ids` and writes how many each has; `end_id`, unless
    // negative, follows the ids of each text that has any. Any number of threads may call at once.
    // Throws LoneSurrogate.
    template <typename Id>
    void encode(const Text* texts, int64_t count, int64_t end_id, IdBuffer<Id>& ids,
                int32_t* lengths) const;

    bool is_unigram() const { return model_.type == ModelType::unigram; }

private:
    template <typename Id>
    class Run;

    void find_whole_pieces();
    void find_neighbours();

    // Whether a text may be cut between two code points: the ids of both sides, the second encoded
    // as a continuation, are those of the whole.
    bool may_cut(char32_t left, char32_t right) const {
        return left != U' ' && left != U'\u2581' && !neighbours_.may_hold(left, right)
               && !neighbours_.may_hold(left, FIXED) && !neighbours_.may_hold(right, FIXED);
    }

    static constexpr char32_t FIXED = Trie::END;  // next to a code point: never cut there

    int64_t window_;
    SentencePieceModel model_;
    std::vector<AddedToken> added_;
    uint32_t unknown_;
    std::vector<uint32_t> byte_ids_;  // by byte; empty without byte fallback
    std::u32string loose_;            // BPE: code points in pieces that are no pieces themselves
    Trie added_trie_;
    Trie user_trie_;                  // user-defined pieces, found before any merging
    Trie trie_;                       // every symbol: the pieces that text can spell, and `loose_`
    std::unique_ptr<const MergeTable> merges_;     // of BPE
    std::unique_ptr<const UnigramScores> scores_;  // of a unigram model
    Normalizer normalizer_;
    std::vector<bool> is_whole_;      // BPE: pieces whose own text is encoded as the piece
    NeighbourSet neighbours_;         // within any key, a space as U+2581
};

}  // namespace chimed
