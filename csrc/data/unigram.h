// sentencepiece's unigram model: of all ways to cut a text into pieces, that of the highest score.
//
// The score of a way is a sum from the left to the right, and sentencepiece's choice among almost
// equal ones depends on how each sum was rounded. So every sum is made as it makes them: over the
// whole text, also where a text is processed in windows, and no part of a path is kept for another
// text. Where a sum falls below -100,000, sentencepiece 0.2.3 goes on from 0.
#pragma once

#include <cstdint>
#include <vector>

#include "sentencepiece_model.h"
#include "trie.h"

namespace chimed {

// What the pieces of a path add to its score.
class UnigramScores {
public:
    explicit UnigramScores(const std::vector<Piece>& pieces);

    // Of a piece that text can spell.
    float operator[](uint32_t piece) const { return scores_[piece]; }

    // Of a code point that is no piece.
    float unknown() const { return unknown_; }

    // Code points of the longest piece.
    uint32_t longest() const { return longest_; }

private:
    std::vector<float> scores_;  // by piece
    float unknown_;
    uint32_t longest_ = 1;
};

// Finds paths; keeps its memory from one text to the next.
class UnigramPath {
public:
    // A piece of a path, or a code point that is none.
    struct Step {
        uint32_t piece;  // Trie::NONE: unknown
        uint32_t end;    // in the text
    };

    // The steps of the best path through text[0 .. size-1], which END follows; `trie` holds the
    // pieces. `score` is that of the path before the text and becomes that of the whole path. Valid
    // until the next call.
    const std::vector<Step>& find(const Trie& trie, const UnigramScores& scores,
                                  const char32_t* text, uint32_t size, float& score);

private:
    static constexpr float LOWEST = -100000;

    // The best path to a place.
    struct Node {
        float score;
        uint32_t piece;
        uint32_t length;  // of the piece in code points; 0: no path yet
    };

    std::vector<Node> nodes_;
    std::vector<Step> steps_;
};

}  // namespace chimed
