// The part of a sentencepiece model file on which encoding depends.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace chimed {

// A model that this encoder would not reproduce id for id; the text says why.
struct Unsupported : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The numbers are those of sentencepiece_model.proto.
enum class PieceType {
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
};
enum class ModelType { unigram = 1, bpe = 2, word = 3, character = 4 };

struct Piece {
    std::u32string text;
    float score = 0;
    PieceType type = PieceType::normal;

    // Whether merging text or finding it can give this piece.
    bool is_spelled() const {
        return type == PieceType::normal || type == PieceType::user_defined;
    }
};

struct NormalizerSpec {
    std::string charsmap;  // rules compiled by sentencepiece; empty: text stays as it is
    bool add_dummy_prefix = true;
    bool remove_extra_whitespaces = true;
    bool escape_whitespaces = true;
    bool whitespace_is_suffix = false;
};

struct SentencePieceModel {
    std::vector<Piece> pieces;
    ModelType type = ModelType::unigram;
    bool byte_fallback = false;
    NormalizerSpec normalizer;
};

// Reads the file. Throws Unsupported for all but BPE and unigram models, and where pieces of BPE
// depend on more than the text around them.
SentencePieceModel read_sentencepiece_model(std::string_view file);

// Code points of UTF-8 text; `what` names it in the message of Unsupported.
std::u32string decode_utf8(std::string_view text, const char* what);

}  // namespace chimed
