// Where no merge of a byte-level vocabulary can cross from one code point to the next.
#pragma once

#include <bitset>
#include <cstdint>
#include <string_view>

#include "neighbours.h"

namespace chimed {

// Collects the boundaries between code points within all tokens. A token may begin or end within a
// code point, and such ends are known by their bytes. May name a boundary that no token has, but
// never misses one.
class Boundaries {
public:
    // A token's bytes, which need not be UTF-8.
    void add_all(std::string_view token) {
        for (size_t i = 1; i < token.size(); ++i) {
            if (!is_inside(byte_at(token, i))) add(token, i);
        }
    }

    // Whether some token may hold both code points, of which at least one is not ASCII.
    bool may_hold(uint32_t left, uint8_t left_byte, uint32_t right, uint32_t right_bytes) const {
        return whole_.may_hold(left, right) || bytes_[size_t(left_byte) << 8 | right_bytes >> 8]
               || ends_.may_hold(left_byte, right_bytes);
    }

private:
    static uint8_t byte_at(std::string_view text, size_t i) { return uint8_t(text[i]); }
    static bool is_inside(uint8_t byte) { return (byte & 0xC0) == 0x80; }
    static size_t length_of(uint8_t lead) {
        return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    }

    // The code point that begins at `i`; 0 where the token does not hold all of it.
    static uint32_t point_at(std::string_view token, size_t i) {
        const uint8_t lead = byte_at(token, i);
        const size_t length = length_of(lead);
        if (is_inside(lead) || i + length > token.size()) return 0;
        uint32_t point = length == 1 ? lead : lead & (0x7F >> length);
        for (size_t k = 1; k < length; ++k) point = point << 6 | (byte_at(token, i + k) & 0x3F);
        return point;
    }

    void add(std::string_view token, size_t boundary) {
        const uint8_t left_byte = byte_at(token, boundary - 1);
        const uint8_t lead = byte_at(token, boundary);
        size_t start = boundary - 1;
        while (start > 0 && is_inside(byte_at(token, start))) --start;
        const uint32_t left = point_at(token, start);
        const uint32_t right = point_at(token, boundary);
        if (left != 0 && right != 0) {
            whole_.add(left, right);
        } else if (lead < 0x80) {
            ends_.add(left_byte, uint32_t(lead) << 8);
        } else if (boundary + 1 < token.size()) {
            ends_.add(left_byte, uint32_t(lead) << 8 | byte_at(token, boundary + 1));
        } else {
            bytes_[size_t(left_byte) << 8 | lead] = true;
        }
    }

    NeighbourSet whole_;         // pairs of code points
    NeighbourSet ends_;          // the last byte of the left one, the first two of the right one
    std::bitset<1 << 16> bytes_;  // the last byte of the left one, the first of the right one
};

}  // namespace chimed
