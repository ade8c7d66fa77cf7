// What the pre-tokenizer and NFC need to know of a code point.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace chimed {

// Bits of `PointClasses`; 0 is any other code point.
enum PointClass : uint8_t {
    LETTER = 1,      // \p{L}
    NUMBER = 2,      // \p{N}
    SPACE = 4,       // \s
    NEWLINE = 8,     // CR and LF, which are SPACE too
    COMPOSING = 16,  // text without any is in NFC
    SURROGATE = 32,
};

// 256 code points share a page, and pages of equal contents are one: Han takes 256 bytes.
class PointClasses {
public:
    PointClasses();

    uint8_t operator[](uint8_t point) const { return pages_[point]; }  // page 0 is the first
    uint8_t operator[](uint16_t point) const { return (*this)[uint32_t(point)]; }
    uint8_t operator[](uint32_t point) const {
        return pages_[uint32_t(page_of_[point >> 8]) << 8 | (point & 255)];
    }

private:
    std::array<uint8_t, (0x110000 >> 8)> page_of_;
    std::vector<uint8_t> pages_;
};

}  // namespace chimed
