#include "byte_vocabulary.h"

#include <array>
#include <cstring>

#include "json_text.h"

namespace chimed {
namespace {

constexpr uint32_t MAX_IDS = 1 << 20;
constexpr uint16_t NO_BYTE = 0xFFFF;

[[noreturn]] void refuse(const char* what) { throw Unsupported(what); }

// GPT-2's alphabet, in which each byte is one character below U+0144.
struct ByteAlphabet {
    std::array<uint16_t, 0x144> byte_of;     // by character; NO_BYTE: it stands for none
    std::array<std::string, 256> characters;  // by byte, in UTF-8

    ByteAlphabet() {
        byte_of.fill(NO_BYTE);
        uint32_t next = 0x100;
        for (uint16_t byte = 0; byte < 256; ++byte) {
            const bool is_shown = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
            const uint32_t point = is_shown ? byte : next++;
            byte_of[point] = byte;
            if (point >= 0x80) characters[byte].push_back(char(0xC0 | point >> 6));
            characters[byte].push_back(char(point < 0x80 ? point : 0x80 | (point & 0x3F)));
        }
    }

    // Appends the bytes of a spelling in UTF-8; false where a character stands for none.
    bool append_bytes(std::string_view spelling, std::string& bytes) const {
        for (size_t i = 0; i < spelling.size(); ++i) {
            uint32_t point = uint8_t(spelling[i]);
            if (point >= 0x80) {
                if (point < 0xC2 || point > 0xC5 || i + 1 == spelling.size()) return false;
                const uint8_t next = uint8_t(spelling[++i]);
                if ((next & 0xC0) != 0x80) return false;
                point = (point & 0x1F) << 6 | (next & 0x3F);
            }
            if (point >= byte_of.size() || byte_of[point] == NO_BYTE) return false;
            bytes.push_back(char(byte_of[point]));
        }
        return true;
    }

    void append_spelling(std::string_view bytes, std::string& spelling) const {
        for (const char byte : bytes) spelling += characters[uint8_t(byte)];
    }
};

const ByteAlphabet& alphabet() {
    static const ByteAlphabet made;
    return made;
}

// A place in a JSON text. It follows a well-formed text only, and is not sure to notice another.
class JsonCursor {
public:
    JsonCursor(std::string_view file, size_t at)
        : begin_(file.data()), at_(begin_ + at), end_(begin_ + file.size()) {}

    size_t place() const { return size_t(at_ - begin_); }

    void skip_space() {
        while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\r' || *at_ == '\t')) ++at_;
    }

    // Whether the next character that is no space is this one; then it is taken.
    bool take(char wanted) {
        skip_space();
        if (at_ == end_ || *at_ != wanted) return false;
        ++at_;
        return true;
    }

    void expect(char wanted) {
        if (!take(wanted)) refuse("tokenizer.json is not laid out as expected");
    }

    // Whether a list goes on after an item; else its end is taken.
    bool goes_on(char end) {
        if (take(',')) return true;
        expect(end);
        return false;
    }

    // A string as it is written, between its quotes.
    std::string_view text() {
        expect('"');
        const char* const begin = at_;
        while (at_ < end_ && *at_ != '"') at_ += *at_ == '\\' ? 2 : 1;
        if (at_ >= end_) refuse("tokenizer.json ends within a text");
        return {begin, size_t(at_++ - begin)};
    }

    // A key without escapes.
    std::string_view key() {
        const std::string_view written = text();
        if (written.find('\\') != written.npos) refuse("a key of tokenizer.json has an escape");
        expect(':');
        return written;
    }

    uint32_t number() {
        skip_space();
        const char* const begin = at_;
        uint32_t value = 0;
        while (at_ < end_ && *at_ >= '0' && *at_ <= '9' && value < MAX_IDS) {
            value = value * 10 + uint32_t(*at_++ - '0');
        }
        const bool has_zero = at_ - begin > 1 && *begin == '0';
        if (at_ == begin || has_zero) refuse("an id is no plain number");
        if (value >= MAX_IDS) refuse("it has ids of over a million");
        return value;
    }

    void skip_value() {
        int depth = 0;
        do {
            skip_space();
            if (at_ == end_) refuse("tokenizer.json ends within a value");
            if (*at_ == '"') {
                text();
            } else if (*at_ == '{' || *at_ == '[') {
                ++depth;
                ++at_;
            } else if (*at_ == '}' || *at_ == ']') {
                --depth;
                ++at_;
            } else if (depth > 0) {
                ++at_;
            } else {
                while (at_ < end_ && *at_ != ',' && *at_ != '}' && *at_ != ']') ++at_;
            }
        } while (depth > 0);
        if (depth < 0) refuse("tokenizer.json closes a value that is not open");
    }

private:
    const char* begin_;
    const char* at_;
    const char* end_;
};

// The bytes from the value of `wanted` on in an object that begins at the cursor.
ByteVocabulary::Span find_value(JsonCursor cursor, std::string_view wanted, const char* missing) {
    ByteVocabulary::Span found{0, 0};
    cursor.expect('{');
    do {
        const bool is_wanted = cursor.key() == wanted;
        cursor.skip_space();
        const size_t begin = cursor.place();
        cursor.skip_value();
        if (!is_wanted) continue;
        if (found.end != 0) refuse("tokenizer.json has a key twice");
        found = {begin, cursor.place()};
    } while (cursor.goes_on('}'));
    if (found.end == 0) refuse(missing);
    return found;
}

// The text that a string stands for, in UTF-8. Most have no escapes and are returned as they are:
// what `append_bytes` accepts of these is valid.
std::string_view decode(std::string_view written, std::string& decoded) {
    if (written.find('\\') == written.npos) return written;
    if (!read_text(written, decoded)) refuse("a text of tokenizer.json is not valid");
    return decoded;
}

}  // namespace

uint64_t ByteStrings::hash(std::string_view text) {
    constexpr uint64_t FACTOR = 0x9E3779B97F4A7C15u;
    uint64_t mixed = text.size() * FACTOR;
    const char* at = text.data();
    size_t left = text.size();
    for (; left >= 8; left -= 8, at += 8) {
        uint64_t word;
        std::memcpy(&word, at, 8);
        mixed = (mixed ^ word) * FACTOR;
        mixed ^= mixed >> 32;
    }
    uint64_t word = 0;
    for (size_t i = 0; i < left; ++i) word |= uint64_t(uint8_t(at[i])) << 8 * i;
    mixed = (mixed ^ word) * FACTOR;
    return (mixed ^ mixed >> 32) * FACTOR;
}

void ByteStrings::add(std::string_view text, uint32_t number) {
    if (number >= spans_.size()) spans_.resize(number + 1);
    spans_[number] = {uint32_t(text_.size()), uint32_t(text.size())};
    text_ += text;
    ++count_;
}

bool ByteStrings::build() {
    size_t capacity = 16;
    while (capacity < count_ * 3 / 2) capacity *= 2;
    slots_.assign(capacity, 0);
    for (uint32_t number = 0; number < spans_.size(); ++number) {
        const std::string_view text = (*this)[number];
        if (text.empty()) continue;
        if (find(text) != NONE) return false;
        const uint64_t hashed = hash(text);
        size_t at = hashed & (capacity - 1);
        while (slots_[at] != 0) at = (at + 1) & (capacity - 1);
        slots_[at] = hashed >> 32 << 32 | (number + 1);
    }
    return true;
}

uint32_t ByteStrings::find(std::string_view text) const {
    const uint64_t hashed = hash(text);
    const size_t last = slots_.size() - 1;
    for (size_t at = hashed & last; slots_[at] != 0; at = (at + 1) & last) {
        const uint32_t number = uint32_t(slots_[at]) - 1;
        if (slots_[at] >> 32 == hashed >> 32 && (*this)[number] == text) return number;
    }
    return NONE;
}

ByteVocabulary::ByteVocabulary(std::string_view file) {
    if (file.size() > UINT32_MAX) refuse("tokenizer.json is of over 4 GiB");
    const Span model = find_value(JsonCursor(file, 0), "model", "tokenizer.json has no model");
    const JsonCursor cursor(file, model.begin);
    vocab_span_ = find_value(cursor, "vocab", "the model has no vocab");
    merges_span_ = find_value(cursor, "merges", "the model has no merges");
    read_vocab(file.substr(0, vocab_span_.end));
    read_merges(file.substr(0, merges_span_.end));
}

void ByteVocabulary::read_vocab(std::string_view file) {
    JsonCursor cursor(file, vocab_span_.begin);
    std::vector<bool> is_taken;
    std::string bytes, decoded;
    cursor.expect('{');
    do {
        const std::string_view written = cursor.text();
        cursor.expect(':');
        const uint32_t id = cursor.number();
        if (id >= is_taken.size()) is_taken.resize(size_t(id) + 1);
        if (is_taken[id]) refuse("two tokens share an id");
        if (written.empty()) refuse("a token is the empty text");
        is_taken[id] = true;
        bytes.clear();
        if (alphabet().append_bytes(decode(written, decoded), bytes)) {
            tokens_.add(bytes, id);
        } else {
            if (!read_text(written, decoded)) refuse("a text of tokenizer.json is not valid");
            if (!unspelled_.emplace(decoded, id).second) refuse("two ids share a token");
            unspelled_by_id_.emplace(id, decoded);
        }
        ++num_entries_;
    } while (cursor.goes_on('}'));
    num_ids_ = uint32_t(is_taken.size());
    if (!tokens_.build()) refuse("two ids share a token");
}

void ByteVocabulary::read_merges(std::string_view file) {
    JsonCursor cursor(file, merges_span_.begin);
    std::string both, decoded;
    const auto append = [&both](std::string_view text) {
        if (!alphabet().append_bytes(text, both)) refuse("a merge is of tokens outside bytes");
        return both.size();
    };
    cursor.expect('[');
    if (cursor.take(']')) return;
    do {
        both.clear();
        size_t cut;
        if (cursor.take('[')) {
            cut = append(decode(cursor.text(), decoded));
            cursor.expect(',');
            append(decode(cursor.text(), decoded));
            cursor.expect(']');
        } else {
            const std::string_view pair = decode(cursor.text(), decoded);
            const size_t space = pair.find(' ');
            if (space == pair.npos) refuse("a merge is not of two tokens");
            cut = append(pair.substr(0, space));
            append(pair.substr(space + 1));
        }
        add_merge(cut, both);
    } while (cursor.goes_on(']'));
}

void ByteVocabulary::add_merge(size_t cut, const std::string& both) {
    const std::string_view text = both;
    const uint32_t left = tokens_.find(text.substr(0, cut));
    const uint32_t right = tokens_.find(text.substr(cut));
    const uint32_t result = tokens_.find(text);
    if (left == NONE || right == NONE || result == NONE) {
        refuse("a merge is of tokens outside the vocabulary");
    }
    merges_.push_back({left, right, result});
}

uint32_t ByteVocabulary::find(std::string_view spelling) const {
    std::string bytes;
    if (alphabet().append_bytes(spelling, bytes)) return tokens_.find(bytes);
    const auto found = unspelled_.find(std::string(spelling));
    return found == unspelled_.end() ? NONE : found->second;
}

std::string ByteVocabulary::spelling(uint32_t id) const {
    const auto found = unspelled_by_id_.find(id);
    if (found != unspelled_by_id_.end()) return found->second;
    std::string spelled;
    if (id < tokens_.size()) alphabet().append_spelling(tokens_[id], spelled);
    return spelled;
}

std::string ByteVocabulary::listing() const {
    std::string lines;
    for (uint32_t id = 0; id < num_ids_; ++id) {
        const std::string text = spelling(id);
        if (text.empty()) continue;
        if (!lines.empty()) lines += '\n';
        lines += text + ' ' + std::to_string(id);
    }
    lines += "\n\n";
    for (const MergeList::Merge& merge : merges_) {
        if (lines.back() != '\n') lines += '\n';
        alphabet().append_spelling(tokens_[merge.left], lines);
        lines += ' ';
        alphabet().append_spelling(tokens_[merge.right], lines);
    }
    return lines;
}

}  // namespace chimed
