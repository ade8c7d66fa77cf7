#include "sentencepiece.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <utility>

namespace chimed {
namespace {

constexpr int64_t MAX_LENGTH = (1 << 29) - 1;  // of a text: a code point is up to 4 ids

char32_t point_at(const Text& text, int64_t place) {
    switch (text.width) {
        case 1: return static_cast<const uint8_t*>(text.data)[place];
        case 2: return static_cast<const uint16_t*>(text.data)[place];
        default: return static_cast<const uint32_t*>(text.data)[place];
    }
}

// Widens code points to 4 bytes; says whether a surrogate is among them.
template <typename Point>
bool widen(const void* data, int64_t begin, int64_t end, char32_t* to) {
    const Point* const from = static_cast<const Point*>(data);
    uint32_t surrogates = 0;
    for (int64_t i = begin; i < end; ++i) {
        const uint32_t point = from[i];
        *to++ = point;
        surrogates |= (point & 0xFFFFF800u) == 0xD800u;
    }
    return surrogates != 0;
}

// Code points that occur in pieces of two or more and are not pieces themselves.
std::u32string find_loose_points(const std::vector<Piece>& pieces) {
    PointTable is_known;
    for (const Piece& piece : pieces) {
        if (piece.is_spelled() && piece.text.size() == 1) is_known.at(piece.text[0]) = 1;
    }
    std::u32string loose;
    for (const Piece& piece : pieces) {
        if (!piece.is_spelled()) continue;
        for (const char32_t point : piece.text) {
            if (is_known[point]) continue;
            is_known.at(point) = 1;
            loose.push_back(point);
        }
    }
    return loose;
}

Trie make_symbol_trie(const std::vector<Piece>& pieces, const std::u32string& loose) {
    std::vector<Trie::Key> keys;
    for (Symbol index = 0; index < pieces.size(); ++index) {
        if (pieces[index].is_spelled()) keys.emplace_back(pieces[index].text, index);
    }
    for (size_t i = 0; i < loose.size(); ++i) {
        keys.emplace_back(std::u32string_view(loose).substr(i, 1), Symbol(pieces.size() + i));
    }
    return Trie(std::move(keys));
}

Trie make_user_trie(const std::vector<Piece>& pieces) {
    std::vector<Trie::Key> keys;
    for (Symbol index = 0; index < pieces.size(); ++index) {
        const Piece& piece = pieces[index];
        if (piece.type == PieceType::user_defined) keys.emplace_back(piece.text, index);
    }
    // sentencepiece finds at most 64 symbols that are prefixes of one another: up to 64 are safe.
    if (keys.size() <= 64) return Trie(std::move(keys));
    for (const Trie::Key& key : keys) {
        if (key.first.size() > 64) throw Unsupported("user-defined symbols of over 64 characters");
    }
    return Trie(std::move(keys));
}

Trie make_added_trie(const std::vector<AddedToken>& tokens) {
    std::vector<Trie::Key> keys;
    for (const AddedToken& token : tokens) keys.emplace_back(token.text, token.id);
    return Trie(std::move(keys));
}

// By byte; empty where the model has no byte fallback.
std::vector<uint32_t> find_byte_ids(const SentencePieceModel& model) {
    if (!model.byte_fallback) return {};
    std::vector<uint32_t> ids(256);
    for (uint32_t index = 0; index < model.pieces.size(); ++index) {
        const Piece& piece = model.pieces[index];
        unsigned byte = 0;
        const std::string text(piece.text.begin(), piece.text.end());
        if (piece.type == PieceType::byte && std::sscanf(text.c_str(), "<0x%2X>", &byte) == 1) {
            ids[byte] = index;
        }
    }
    return ids;
}

uint32_t find_unknown(const std::vector<Piece>& pieces) {
    const auto found = std::find_if(pieces.begin(), pieces.end(), [](const Piece& piece) {
        return piece.type == PieceType::unknown;
    });
    return uint32_t(found - pieces.begin());
}

}  // namespace

// One thread's work: its memory, and where the ids go.
template <typename Id>
class SentencePieceEncoder::Run {
public:
    Run(const SentencePieceEncoder& encoder, int64_t end_id, IdBuffer<Id>& ids)
        : encoder_(encoder),
          trie_(encoder.trie_),
          num_pieces_(Symbol(encoder.model_.pieces.size())),
          end_id_(end_id),
          buffer_(ids),
          size_(ids.size) {
        if (encoder.merges_) merger_.emplace(*encoder.merges_);
    }

    ~Run() { buffer_.size = size_; }

    size_t size() const { return size_; }

    void encode(const Text& text) {
        if (text.length > MAX_LENGTH) throw std::length_error("a text of over 2^29 characters");
        const size_t before = size_;
        for (int64_t begin = 0; begin < text.length;) {
            const int64_t end = window_end(text, begin);
            read(text, begin, end);
            char32_t* const from = text_.data();
            char32_t* const to = from + (end - begin);
            const Window window{begin == 0 ? nullptr : from, end == text.length ? nullptr : to};
            const auto rest = [&](const char32_t* left, const char32_t* right) {
                encode_between(left, right, window);
            };
            cut_out(encoder_.added_trie_, from, to, rest);
            begin = end;
        }
        if (end_id_ >= 0 && size_ > before) put(uint32_t(end_id_));
    }

private:
    // The ends of a window at which the text continues; null where it does not.
    struct Window {
        const char32_t* begin;
        const char32_t* end;
    };

    // For that many ids and one more: a token, or the end of the text.
    void make_room(size_t count) {
        buffer_.reserve(size_ + count + 1);
        ids_ = buffer_.data();
    }

    // The first place after a window's worth of text where it may be cut. A text without one is a
    // single window, for which there is memory.
    int64_t window_end(const Text& text, int64_t begin) const {
        for (int64_t end = begin + encoder_.window_; end < text.length; ++end) {
            if (encoder_.may_cut(point_at(text, end - 1), point_at(text, end))) return end;
        }
        return text.length;
    }

    void read(const Text& text, int64_t begin, int64_t end) {
        const size_t length = size_t(end - begin);
        if (text_.size() <= length) text_.resize(length + 1);
        char32_t* const to = text_.data();
        const bool has_surrogate = text.width == 1   ? widen<uint8_t>(text.data, begin, end, to)
                                   : text.width == 2 ? widen<uint16_t>(text.data, begin, end, to)
                                                     : widen<uint32_t>(text.data, begin, end, to);
        if (has_surrogate) throw LoneSurrogate("a text holds a lone surrogate");
        to[length] = Trie::END;
    }

    // Ids of the trie's keys in the text and, by `encode_rest`, of what lies between, in order.
    template <typename Rest>
    void cut_out(const Trie& keys, char32_t* begin, char32_t* end, const Rest& encode_rest) {
        for (char32_t* place = begin; !keys.is_empty() && place < end;) {
            const Trie::Match match = keys.may_start(*place) ? keys.longest(place) : Trie::Match();
            if (match.length == 0) {
                ++place;
                continue;
            }
            // No match before the key may reach into it.
            const char32_t first = std::exchange(*place, Trie::END);
            encode_rest(begin, place);
            *place = first;
            put(match.value);
            begin = place += match.length;
        }
        encode_rest(begin, end);
    }

    // What sentencepiece would get in one call, or the window's part of it. END follows it.
    void encode_between(const char32_t* begin, const char32_t* end, Window window) {
        normalized_.clear();
        encoder_.normalizer_.append(begin, end, {begin != window.begin, end != window.end},
                                    normalized_);
        const size_t length = normalized_.size();
        normalized_.push_back(Trie::END);
        make_room(4 * length);  // bytes of each code point
        if (begin != window.begin) {
            behind_unknown_ = SIZE_MAX;
            score_ = 0;
        }
        char32_t* const text = normalized_.data();
        if (encoder_.scores_) return encode_best_path(text, uint32_t(length));
        cut_out(encoder_.user_trie_, text, text + length,
                [this](const char32_t* from, const char32_t* to) { encode_pieces(from, to); });
    }

    void encode_best_path(const char32_t* text, uint32_t size) {
        for (const auto& step : path_.find(trie_, *encoder_.scores_, text, size, score_)) {
            if (step.piece == Trie::NONE) {
                emit_unknown(text[step.end - 1]);
            } else {
                put(step.piece);
            }
        }
    }

    void encode_pieces(const char32_t* text, const char32_t* end) {
        const uint32_t size = uint32_t(end - text);
        if (matches_.size() < size) {
            matches_.resize(size);
            walks_.resize(size);
        }
        trie_.match_all(text, size, matches_.data(), walks_.data());
        const Trie::Match* const matches = matches_.data();
        for (uint32_t i = 0; i < size;) {
            const Trie::Match match = matches[i];
            if (match.length == 1) {
                emit(match.value, text[i]);
                ++i;
                continue;
            }
            const uint32_t behind = i + match.length;
            uint32_t cut = behind;
            for (uint32_t k = i + 1; k < cut; ++k) cut = std::max(cut, k + matches[k].length);
            if (cut == behind && (match.length == 2 || encoder_.is_whole_[match.value])) {
                put(match.value);
            } else {
                merge(text + i, text + cut);
            }
            i = cut;
        }
    }

    void merge(const char32_t* text, const char32_t* end) {
        parts_.clear();
        for (const char32_t* place = text; place < end; ++place) {
            parts_.push_back({trie_.single(*place).value, uint32_t(place - text)});
        }
        merger_->merge(parts_);
        for (const MergePart& part : parts_) emit(part.symbol, text[part.begin]);
    }

    void emit(Symbol symbol, char32_t point) {
        if (symbol < num_pieces_) {
            put(symbol);
        } else {
            emit_unknown(point);
        }
    }

    void put(uint32_t id) { ids_[size_++] = Id(id); }

    void emit_unknown(char32_t point) {
        const std::vector<uint32_t>& byte_ids = encoder_.byte_ids_;
        if (byte_ids.empty()) {
            // One id for a run of unknown characters.
            if (behind_unknown_ != size_) put(encoder_.unknown_);
            behind_unknown_ = size_;
            return;
        }
        const int more = point < 0x80 ? 0 : point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
        constexpr unsigned leads[] = {0, 0xC0, 0xE0, 0xF0};
        put(byte_ids[leads[more] | point >> 6 * more]);
        for (int k = more - 1; k >= 0; --k) {
            put(byte_ids[0x80 | (point >> 6 * k & 0x3F)]);
        }
    }

    const SentencePieceEncoder& encoder_;
    const Trie& trie_;
    const Symbol num_pieces_;
    const int64_t end_id_;
    std::optional<Merger<MergeTable>> merger_;  // of BPE
    IdBuffer<Id>& buffer_;
    Id* ids_ = nullptr;  // of the buffer
    size_t size_;
    size_t behind_unknown_ = SIZE_MAX;  // `size_` when an unknown id was last put
    std::vector<char32_t> text_;
    std::vector<char32_t> normalized_;
    std::vector<Trie::Match> matches_;
    std::vector<Trie::Walk> walks_;
    std::vector<MergePart> parts_;
    UnigramPath path_;
    float score_ = 0;  // of the path up to the window
};

SentencePieceEncoder::SentencePieceEncoder(std::string_view model,
                                           std::vector<AddedToken> added_tokens, int64_t window)
    : window_(window),
      model_(read_sentencepiece_model(model)),
      added_(std::move(added_tokens)),
      unknown_(find_unknown(model_.pieces)),
      byte_ids_(find_byte_ids(model_)),
      loose_(is_unigram() ? std::u32string() : find_loose_points(model_.pieces)),
      added_trie_(make_added_trie(added_)),
      user_trie_(make_user_trie(model_.pieces)),
      trie_(make_symbol_trie(model_.pieces, loose_)),
      normalizer_(model_.normalizer, user_trie_) {
    if (is_unigram()) {
        scores_ = std::make_unique<const UnigramScores>(model_.pieces);
    } else {
        merges_ = std::make_unique<const MergeTable>(model_.pieces, trie_);
        find_whole_pieces();
    }
    find_neighbours();
}

// What normalisation may change is fixed, since its neighbours are then not those of the text; so
// are the ends of added tokens, because a text begins after each.
void SentencePieceEncoder::find_neighbours() {
    for (const Piece& piece : model_.pieces) {
        if (piece.is_spelled()) neighbours_.add_all(piece.text);
    }
    for (const AddedToken& token : added_) {
        neighbours_.add_all(token.text);
        neighbours_.add(token.text.front(), FIXED);
        neighbours_.add(token.text.back(), FIXED);
    }
    for (const std::u32string& key : normalizer_.keys()) {
        for (const char32_t point : key) neighbours_.add(point, FIXED);
    }
}

void SentencePieceEncoder::find_whole_pieces() {
    Merger<MergeTable> merger(*merges_);
    std::vector<MergePart> parts;
    is_whole_.resize(model_.pieces.size());
    for (size_t index = 0; index < model_.pieces.size(); ++index) {
        const Piece& piece = model_.pieces[index];
        if (!piece.is_spelled()) continue;
        parts.clear();
        for (const char32_t point : piece.text) parts.push_back({trie_.single(point).value, 0});
        merger.merge(parts);
        is_whole_[index] = parts.size() == 1;
    }
}

template <typename Id>
void SentencePieceEncoder::encode(const Text* texts, int64_t count, int64_t end_id,
                                  IdBuffer<Id>& ids, int32_t* lengths) const {
    Run<Id> run(*this, end_id, ids);
    for (int64_t i = 0; i < count; ++i) {
        const size_t before = run.size();
        run.encode(texts[i]);
        lengths[i] = int32_t(run.size() - before);
    }
}

template void SentencePieceEncoder::encode(const Text*, int64_t, int64_t, IdBuffer<uint16_t>&,
                                           int32_t*) const;
template void SentencePieceEncoder::encode(const Text*, int64_t, int64_t, IdBuffer<int32_t>&,
                                           int32_t*) const;

}  // namespace chimed
