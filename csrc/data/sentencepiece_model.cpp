#include "sentencepiece_model.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <unordered_set>

namespace chimed {
namespace {

// Reads protobuf's wire format, field by field; unknown fields are skipped.
class WireReader {
public:
    explicit WireReader(std::string_view bytes) : rest_(bytes) {}

    bool next() {
        if (rest_.empty()) return false;
        const uint64_t tag = take_varint();
        field_ = int(tag >> 3);
        switch (tag & 7) {
            case 0: number_ = take_varint(); break;
            case 1: bytes_ = take(8); break;
            case 2: bytes_ = take(take_varint()); break;
            case 5: bytes_ = take(4); break;
            default: throw Unsupported("the model file holds a field of unknown wire type");
        }
        return true;
    }

    int field() const { return field_; }
    uint64_t number() const { return number_; }
    std::string_view bytes() const { return bytes_; }

    float real() const {
        if (bytes_.size() != sizeof(float)) throw Unsupported("a score is no 32-bit number");
        float value;
        std::memcpy(&value, bytes_.data(), sizeof(value));
        return value;
    }

private:
    std::string_view take(uint64_t size) {
        if (size > rest_.size()) throw Unsupported("the model file is cut off");
        const std::string_view taken = rest_.substr(0, size);
        rest_.remove_prefix(size);
        return taken;
    }

    uint64_t take_varint() {
        uint64_t value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const uint64_t byte = uint8_t(take(1)[0]);
            value |= (byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        throw Unsupported("the model file holds a number of more than 64 bits");
    }

    std::string_view rest_;
    std::string_view bytes_;
    uint64_t number_ = 0;
    int field_ = 0;
};

Piece read_piece(std::string_view bytes) {
    Piece piece;
    for (WireReader reader(bytes); reader.next();) {
        switch (reader.field()) {
            case 1: piece.text = decode_utf8(reader.bytes(), "a piece"); break;
            case 2: piece.score = reader.real(); break;
            case 3: piece.type = PieceType(reader.number()); break;
        }
    }
    return piece;
}

void read_trainer_spec(std::string_view bytes, SentencePieceModel& model) {
    for (WireReader reader(bytes); reader.next();) {
        switch (reader.field()) {
            case 3: model.type = ModelType(reader.number()); break;
            case 24: model.normalizer.whitespace_is_suffix = reader.number() != 0; break;
            case 35: model.byte_fallback = reader.number() != 0; break;
        }
    }
}

void read_normalizer_spec(std::string_view bytes, NormalizerSpec& spec) {
    for (WireReader reader(bytes); reader.next();) {
        switch (reader.field()) {
            case 2: spec.charsmap = reader.bytes(); break;
            case 3: spec.add_dummy_prefix = reader.number() != 0; break;
            case 4: spec.remove_extra_whitespaces = reader.number() != 0; break;
            case 5: spec.escape_whitespaces = reader.number() != 0; break;
        }
    }
}

void check_pieces(const SentencePieceModel& model) {
    std::unordered_set<std::u32string_view> spelled;
    const bool is_bpe = model.type == ModelType::bpe;
    for (const Piece& piece : model.pieces) {
        if (piece.is_spelled()) spelled.insert(piece.text);
        // Which parts an unused piece falls back to depends on all text encoded before it.
        if (piece.type == PieceType::unused && is_bpe) {
            throw Unsupported("the model has unused pieces");
        }
        if (!std::isfinite(piece.score)) throw Unsupported("a piece's score is not finite");
    }
    for (const Piece& piece : model.pieces) {
        // BPE looks a spelling up among the control pieces first.
        const bool is_text = piece.is_spelled() || piece.type == PieceType::unused;
        if (!is_text && is_bpe && (piece.text.size() == 1 || spelled.count(piece.text))) {
            throw Unsupported("a control, unknown or byte piece is spelled like text");
        }
    }
}

}  // namespace

SentencePieceModel read_sentencepiece_model(std::string_view file) {
    SentencePieceModel model;
    std::vector<std::string_view> pieces;
    for (WireReader reader(file); reader.next();) {
        switch (reader.field()) {
            case 1: pieces.push_back(reader.bytes()); break;
            case 2: read_trainer_spec(reader.bytes(), model); break;
            case 3: read_normalizer_spec(reader.bytes(), model.normalizer); break;
        }
    }
    if (model.type != ModelType::bpe && model.type != ModelType::unigram) {
        const char* const names[] = {"unknown", "unigram", "bpe", "word", "char"};
        const auto number = size_t(model.type);
        throw Unsupported(std::string("the model is of type ") + names[number < 5 ? number : 0]
                          + ", not bpe or unigram");
    }
    model.pieces.reserve(pieces.size());
    for (const std::string_view bytes : pieces) model.pieces.push_back(read_piece(bytes));
    check_pieces(model);
    return model;
}

std::u32string decode_utf8(std::string_view text, const char* what) {
    const auto refuse = [what] { throw Unsupported(std::string(what) + " is not valid UTF-8"); };
    std::u32string points;
    for (size_t i = 0; i < text.size();) {
        const uint8_t lead = uint8_t(text[i]);
        const int more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || i + more >= text.size()) refuse();
        char32_t point = more == 0 ? lead : lead & (0x3F >> more);
        for (int k = 1; k <= more; ++k) {
            const uint8_t byte = uint8_t(text[i + k]);
            if ((byte & 0xC0) != 0x80) refuse();
            point = point << 6 | (byte & 0x3F);
        }
        constexpr char32_t smallest[] = {0, 0x80, 0x800, 0x10000};
        const bool is_surrogate = point >= 0xD800 && point < 0xE000;
        if (point < smallest[more] || point > 0x10FFFF || is_surrogate) refuse();
        points.push_back(point);
        i += more + 1;
    }
    return points;
}

}  // namespace chimed
