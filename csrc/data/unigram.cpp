#include "unigram.h"

#include <algorithm>
#include <cfloat>

namespace chimed {
namespace {

constexpr float UNKNOWN_PENALTY = 10.0f;

size_t utf8_size(std::u32string_view text) {
    size_t size = 0;
    for (const char32_t point : text) {
        size += point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    }
    return size;
}

}  // namespace

UnigramScores::UnigramScores(const std::vector<Piece>& pieces) {
    float least = FLT_MAX;
    for (const Piece& piece : pieces) {
        if (piece.type == PieceType::normal) least = std::min(least, piece.score);
    }
    unknown_ = least - UNKNOWN_PENALTY;
    scores_.reserve(pieces.size());
    for (const Piece& piece : pieces) {
        if (piece.is_spelled()) longest_ = std::max(longest_, uint32_t(piece.text.size()));
        // Found by trial with sentencepiece 0.2.3, where a symbol's own score has no effect.
        const bool is_symbol = piece.type == PieceType::user_defined;
        const double bonus = 0.1 * double(utf8_size(piece.text)) - 0.1;
        scores_.push_back(is_symbol ? float(bonus) : piece.score);
    }
}

const std::vector<UnigramPath::Step>& UnigramPath::find(const Trie& trie,
                                                        const UnigramScores& scores,
                                                        const char32_t* text, uint32_t size,
                                                        float& score) {
    if (nodes_.size() <= size) nodes_.resize(size_t(size) + 1);
    Node* const nodes = nodes_.data();
    nodes[0] = {score, Trie::NONE, 0};
    for (uint32_t i = 1; i <= size; ++i) nodes[i].length = 0;
    for (uint32_t i = 0; i < size; ++i) {
        if (nodes[i].score < LOWEST) {
            const float lost = nodes[i].score;
            const uint32_t last = std::min(size, i + scores.longest());
            for (uint32_t k = i; k <= last; ++k) nodes[k].score -= lost;
        }
        const float before = nodes[i].score;
        const bool is_piece = trie.for_each_key(text + i, [&](int length, uint32_t piece) {
            Node& node = nodes[i + length];
            const float sum = scores[piece] + before;
            if (node.length == 0 || sum > node.score) node = {sum, piece, uint32_t(length)};
        });
        if (is_piece) continue;
        Node& node = nodes[i + 1];
        const float sum = scores.unknown() + before;
        if (node.length == 0 || sum > node.score) node = {sum, Trie::NONE, 1};
    }
    score = nodes[size].score;
    steps_.clear();
    for (uint32_t end = size; end > 0; end -= nodes[end].length) {
        steps_.push_back({nodes[end].piece, end});
    }
    std::reverse(steps_.begin(), steps_.end());
    return steps_;
}

}  // namespace chimed
