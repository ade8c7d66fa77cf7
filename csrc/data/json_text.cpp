#include "json_text.h"

#include <algorithm>
#include <cstring>

namespace chimed {
namespace {

constexpr char32_t BAD = 0xFFFFFFFF;

// Takes code points from the text between two quotes, one by one; BAD for what JSON does not allow.
class TextReader {
public:
    explicit TextReader(std::string_view written)
        : at_(written.data()), end_(at_ + written.size()) {}

    bool is_done() const { return at_ == end_; }

    char32_t next() {
        const uint8_t lead = uint8_t(*at_++);
        if (lead == '\\') return escape();
        if (lead >= 0x80) return wide(lead);
        return lead < 0x20 ? BAD : lead;
    }

private:
    char32_t wide(uint8_t lead) {
        const int more = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (lead < 0xC2 || lead > 0xF4 || end_ - at_ < more) return BAD;
        char32_t point = lead & (0x3F >> more);
        for (int k = 0; k < more; ++k) {
            const uint8_t byte = uint8_t(*at_++);
            if ((byte & 0xC0) != 0x80) return BAD;
            point = point << 6 | (byte & 0x3F);
        }
        constexpr char32_t smallest[] = {0, 0x80, 0x800, 0x10000};
        const bool is_surrogate = point >= 0xD800 && point < 0xE000;
        return point < smallest[more] || point > 0x10FFFF || is_surrogate ? BAD : point;
    }

    char32_t escape() {
        static constexpr char LETTERS[] = "\"\\/bfnrt", VALUES[] = "\"\\/\b\f\n\r\t";
        if (is_done()) return BAD;
        const char letter = *at_++;
        if (letter != 'u') {
            const char* const known = std::strchr(LETTERS, letter);
            return letter != 0 && known != nullptr ? char32_t(VALUES[known - LETTERS]) : BAD;
        }
        const char32_t high = hex4();
        if (high == BAD || high < 0xD800 || high >= 0xE000) return high;
        if (high >= 0xDC00 || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') return BAD;
        at_ += 2;
        const char32_t low = hex4();
        if (low < 0xDC00 || low >= 0xE000) return BAD;
        return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    }

    char32_t hex4() {
        if (end_ - at_ < 4) return BAD;
        char32_t value = 0;
        for (int k = 0; k < 4; ++k) {
            const char digit = *at_++;
            const char letter = char(digit | 0x20);
            const bool is_letter = letter >= 'a' && letter <= 'f';
            if (!is_letter && (digit < '0' || digit > '9')) return BAD;
            value = value << 4 | char32_t(is_letter ? letter - 'a' + 10 : digit - '0');
        }
        return value;
    }

    const char* at_;
    const char* end_;
};

// Whether a parser would accept the string.
bool measure(JsonText& text) {
    for (TextReader reader(text.written); !reader.is_done(); ++text.length) {
        const char32_t point = reader.next();
        if (point == BAD) return false;
        text.largest = std::max(text.largest, point);
    }
    return true;
}

}  // namespace

std::vector<JsonText> find_long_texts(std::string_view value, size_t least) {
    std::vector<JsonText> found;
    for (size_t at = 0; at < value.size(); ++at) {
        if (value[at] != '"') continue;
        const size_t begin = ++at;
        while (at < value.size() && value[at] != '"') at += value[at] == '\\' ? 2 : 1;
        if (at >= value.size() || at - begin < least) continue;
        JsonText text{value.substr(begin, at - begin)};
        if (measure(text)) found.push_back(text);
    }
    return found;
}

template <typename Point>
void write_text(std::string_view written, Point* to) {
    for (TextReader reader(written); !reader.is_done();) *to++ = Point(reader.next());
}

bool read_text(std::string_view written, std::string& text) {
    text.clear();
    for (TextReader reader(written); !reader.is_done();) {
        const char32_t point = reader.next();
        if (point == BAD) return false;
        if (point < 0x80) {
            text.push_back(char(point));
            continue;
        }
        const int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
        constexpr unsigned leads[] = {0, 0xC0, 0xE0, 0xF0};
        text.push_back(char(leads[more] | point >> 6 * more));
        for (int k = more - 1; k >= 0; --k) text.push_back(char(0x80 | (point >> 6 * k & 0x3F)));
    }
    return true;
}

template void write_text(std::string_view, uint8_t*);
template void write_text(std::string_view, uint16_t*);
template void write_text(std::string_view, uint32_t*);

}  // namespace chimed
