#include "json_scan.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

namespace chimed {

namespace {

constexpr uint64_t kOnes = 0x0101010101010101u;
constexpr uint64_t kHighs = 0x8080808080808080u;

uint64_t has_zero_byte(uint64_t word) { return (word - kOnes) & ~word & kHighs; }

// The first quote, backslash or newline: eight bytes at a time, text has few of them.
const char* skip_text(const char* at, const char* end) {
    while (end - at >= 8) {
        uint64_t word;
        std::memcpy(&word, at, 8);
        if (has_zero_byte(word ^ (kOnes * '"')) | has_zero_byte(word ^ (kOnes * '\\'))
            | has_zero_byte(word ^ (kOnes * '\n'))) {
            break;
        }
        at += 8;
    }
    while (at < end && *at != '"' && *at != '\\' && *at != '\n') ++at;
    return at;
}

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

bool is_scalar_end(char c) { return is_space(c) || std::strchr(",]}[{:\"", c) != nullptr; }

}  // namespace

JsonRows::JsonRows(JsonLayout layout, bool inside, std::string key)
    : layout_(layout), state_(State::kStart) {
    if (inside && layout != JsonLayout::kValues) state_ = State::kAfterRow;
    keys_.push_back(std::move(key));
}

void JsonRows::feed(std::string_view piece, std::vector<JsonRow>& rows) {
    piece_ = piece.data();
    keys_.erase(keys_.begin(), keys_.end() - 1);  // a row that goes on is in the latest array
    row_.key = 0;
    const char* at = piece.data();
    const char* end = at + piece.size();
    while (at < end && error_.empty()) at = step(at, end, rows);
    offset_ += static_cast<int64_t>(piece.size());
}

const char* JsonRows::step(const char* at, const char* end, std::vector<JsonRow>& rows) {
    if (in_text_) {
        at = in_string(at, end);
        if (!in_text_ && state_ == State::kText) end_row(offset_ + (at - piece_), rows);
        return at;
    }
    if (state_ == State::kRow) return in_row(at, end, rows);
    if (state_ == State::kScalar) {
        while (at < end && !is_scalar_end(*at)) ++at;
        if (at < end) end_row(offset_ + (at - piece_), rows);
        return at;
    }
    if (is_space(*at)) {
        line_ += *at == '\n';
        return at + 1;
    }
    return between(at);
}

// One character of the layout around the rows; a row's first character is left to the row.
const char* JsonRows::between(const char* at) {
    const char c = *at;
    switch (state_) {
        case State::kStart:
            if (layout_ == JsonLayout::kValues) {
                if (c == '{' || c == '[') {
                    begin_row(at);
                    return at;
                }
                refuse(at, "an object");
            } else if (c == (layout_ == JsonLayout::kArray ? '[' : '{')) {
                state_ = layout_ == JsonLayout::kArray ? State::kFirst : State::kFirstKey;
            } else {
                refuse(at, layout_ == JsonLayout::kArray ? "'['" : "'{'");
            }
            return at + 1;
        case State::kFirst:
        case State::kNext:
            if (c == ']' && state_ == State::kFirst) {
                state_ = layout_ == JsonLayout::kKeyed ? State::kAfterArray : State::kEnd;
                return at + 1;
            }
            if (std::strchr(",]}:", c) != nullptr) {
                refuse(at, "a row");
                return at + 1;
            }
            begin_row(at);
            return c == '"' ? at + 1 : at;
        case State::kAfterRow:
            if (c == ',') {
                state_ = State::kNext;
            } else if (c == ']') {
                state_ = layout_ == JsonLayout::kKeyed ? State::kAfterArray : State::kEnd;
            } else {
                refuse(at, "',' or ']' behind a row");
            }
            return at + 1;
        case State::kEnd:
            refuse(at, "the end of the file");
            return at + 1;
        default:
            in_object(at);
            return at + 1;
    }
}

// One character of the object that holds the arrays, outside the arrays.
void JsonRows::in_object(const char* at) {
    const char c = *at;
    if (state_ == State::kFirstKey || state_ == State::kNextKey) {
        if (c == '"') {
            keys_.emplace_back();
            state_ = State::kKey;
            in_text_ = true;
        } else if (c == '}' && state_ == State::kFirstKey) {
            state_ = State::kEnd;
        } else {
            refuse(at, "a key");
        }
    } else if (state_ == State::kAfterArray) {
        if (c != ',' && c != '}') refuse(at, "',' or '}' behind an array");
        state_ = c == ',' ? State::kNextKey : State::kEnd;
    } else {
        const bool is_colon = state_ == State::kColon;
        if (c != (is_colon ? ':' : '[')) {
            refuse(at, is_colon ? "':' behind a key" : "an array of rows");
        }
        state_ = is_colon ? State::kOpen : State::kFirst;
    }
}

void JsonRows::begin_row(const char* at) {
    row_ = {offset_ + (at - piece_), 0, line_, static_cast<int64_t>(keys_.size()) - 1};
    in_text_ = *at == '"';
    const bool is_container = *at == '{' || *at == '[';
    state_ = in_text_ ? State::kText : is_container ? State::kRow : State::kScalar;
}

void JsonRows::end_row(int64_t end, std::vector<JsonRow>& rows) {
    row_.end = end;
    rows.push_back(row_);
    state_ = layout_ == JsonLayout::kValues ? State::kStart : State::kAfterRow;
}

const char* JsonRows::in_row(const char* at, const char* end, std::vector<JsonRow>& rows) {
    for (; at < end; ++at) {
        const char c = *at;
        if (c == '"') {
            in_text_ = true;
            return at + 1;
        }
        if (c == '\n') {
            ++line_;
        } else if (c == '{' || c == '[') {
            if (open_.size() < kMaxDepth) {
                open_.push_back(c);
            } else {
                ++deeper_;
            }
        } else if (c == '}' || c == ']') {
            if (!close(c)) {
                fail(at, std::string("'") + c + "' closes '" + open_.back()
                             + "' in the row that starts in line "
                             + std::to_string(row_.line + 1));
                return at;
            }
            if (open_.empty()) {
                end_row(offset_ + (at - piece_) + 1, rows);
                return at + 1;
            }
        }
    }
    return at;
}

bool JsonRows::close(char bracket) {
    if (deeper_ > 0) {
        --deeper_;
        return true;
    }
    if (open_.back() != (bracket == '}' ? '{' : '[')) return false;
    open_.pop_back();
    return true;
}

const char* JsonRows::in_string(const char* at, const char* end) {
    const char* start = at;
    bool ended = false;
    while (at < end && !ended) {
        if (escaped_) {
            escaped_ = false;
            line_ += *at++ == '\n';
            continue;
        }
        at = skip_text(at, end);
        if (at == end) break;
        escaped_ = *at == '\\';
        line_ += *at == '\n';
        ended = *at == '"';
        ++at;
    }
    if (state_ == State::kKey) {
        keys_.back().append(start, at - start - (ended ? 1 : 0));
        if (keys_.back().size() > kMaxKey) fail(at, "a key of more than 4096 bytes");
    }
    if (ended) {
        in_text_ = false;
        if (state_ == State::kKey) state_ = State::kColon;
    }
    return at;
}

void JsonRows::finish() {
    if (!error_.empty()) return;
    piece_ = nullptr;
    if (state_ == State::kRow || state_ == State::kText || state_ == State::kScalar) {
        fail(nullptr, "the file ends within the row that starts in line "
                          + std::to_string(row_.line + 1));
    } else if (state_ != State::kEnd && layout_ != JsonLayout::kValues) {
        fail(nullptr, "the file ends before its last bracket is closed");
    }
}

void JsonRows::fail(const char* at, std::string message) {
    error_ = std::move(message);
    error_offset_ = offset_ + (at - piece_);
    error_line_ = line_;
}

void JsonRows::refuse(const char* at, const char* wanted) {
    const unsigned char c = static_cast<unsigned char>(*at);
    const bool is_printable = c > 0x20 && c < 0x7f;
    fail(at, (is_printable ? std::string("'") + *at + "'"
                           : "byte " + std::to_string(static_cast<int>(c)))
                 + " where " + wanted + " was expected");
}

namespace {

struct Frame {
    bool is_object;
    size_t first_key;  // its keys are the last ones of the list
};

int hex_digit(char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; }

uint32_t hex4(const char* at) {
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i) value = value << 4 | static_cast<uint32_t>(hex_digit(at[i]));
    return value;
}

void append_utf8(uint32_t code, std::string& out) {
    if (code < 0x80) {
        out.push_back(static_cast<char>(code));
        return;
    }
    const int tail = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t mark = tail == 1 ? 0xc0 : tail == 2 ? 0xe0 : 0xf0;
    out.push_back(static_cast<char>(mark | code >> (6 * tail)));
    for (int i = tail - 1; i >= 0; --i) {
        out.push_back(static_cast<char>(0x80 | (code >> (6 * i) & 0x3f)));
    }
}

// A JSON string's characters as UTF-8; a damaged escape at its end is left out with what follows.
std::string unescape(std::string_view text) {
    static constexpr char kLetters[] = "bfnrt", kValues[] = "\b\f\n\r\t";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] != '\\') {
            out.push_back(text[i]);
            continue;
        }
        if (text.size() - i < (text.substr(i, 2) == "\\u" ? 6u : 2u)) break;
        const char letter = text[++i];
        if (letter != 'u') {
            const char* known = std::strchr(kLetters, letter);
            out.push_back(known != nullptr ? kValues[known - kLetters] : letter);
            continue;
        }
        uint32_t code = hex4(&text[i + 1]);
        i += 4;
        if (code >= 0xd800 && code < 0xdc00 && text.size() - i > 6) {
            code = 0x10000 + ((code - 0xd800) << 10) + (hex4(&text[i + 3]) - 0xdc00);
            i += 6;
        }
        append_utf8(code, out);
    }
    return out;
}

const std::string_view* find_repeated(std::vector<std::string_view>& keys, size_t first) {
    const size_t count = keys.size() - first;
    if (count > 16) {
        std::sort(keys.begin() + first, keys.end());
        const auto found = std::adjacent_find(keys.begin() + first, keys.end());
        return found == keys.end() ? nullptr : &*found;
    }
    for (size_t i = first + 1; i < keys.size(); ++i) {
        for (size_t j = first; j < i; ++j) {
            if (keys[i] == keys[j]) return &keys[i];
        }
    }
    return nullptr;
}

struct Text {
    const char* end;  // its closing quote
    bool has_escape;
    bool has_nul;
};

// A string's text, from after its opening quote.
Text find_text(const char* at, const char* end) {
    Text text{end, false, false};
    while ((at = skip_text(at, end)) < end && *at != '"') {
        const bool is_escape = *at == '\\';
        text.has_escape |= is_escape;
        text.has_nul |= is_escape && end - at >= 6 && std::memcmp(at, "\\u0000", 6) == 0;
        at = std::min(at + (is_escape ? 2 : 1), end);
    }
    text.end = at;
    return text;
}

}  // namespace

std::string json_problem(std::string_view value) {
    std::vector<Frame> open;
    std::vector<std::string_view> keys;
    std::deque<std::string> unescaped;  // a deque: the views into it stay valid
    bool is_key = false;
    const char* const end = value.data() + value.size();
    for (const char* at = value.data(); at < end; ++at) {
        const char c = *at;
        if (c == '{' || c == '[') {
            open.push_back({c == '{', keys.size()});
            is_key = c == '{';
        } else if (c == ',') {
            is_key = !open.empty() && open.back().is_object;
        } else if (c == '}' || c == ']') {
            if (open.empty()) return "";  // not a JSON value: the parser reports it
            const auto* key = find_repeated(keys, open.back().first_key);
            if (key != nullptr) {
                return "key '" + std::string(*key) + "' occurs twice in one object";
            }
            keys.resize(open.back().first_key);
            open.pop_back();
        } else if (c == '"') {
            const char* const start = at + 1;
            const Text text = find_text(start, end);
            if (text.has_nul) return "NUL character in the text";
            if (is_key) {
                const std::string_view key(start, static_cast<size_t>(text.end - start));
                keys.push_back(text.has_escape ? unescaped.emplace_back(unescape(key)) : key);
                is_key = false;
            }
            if (text.end == end) return "";
            at = text.end;
        }
    }
    return "";
}

}  // namespace chimed
