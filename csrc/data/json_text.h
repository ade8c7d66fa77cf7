// Long strings of a JSON value, read without the copies that a parser makes of its whole input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace chimed {

// A string of a JSON value.
struct JsonText {
    std::string_view written;  // between its quotes
    size_t length = 0;         // code points that it stands for
    char32_t largest = 0;      // of these
};

// The strings of at least that many bytes, keys included, that a strict parser would accept.
std::vector<JsonText> find_long_texts(std::string_view value, size_t least);

// Writes the `length` code points of such a string; `Point` has room for the largest.
template <typename Point>
void write_text(std::string_view written, Point* to);

// The text that such a string stands for, in UTF-8; false where a strict parser would refuse it.
bool read_text(std::string_view written, std::string& text);

}  // namespace chimed
