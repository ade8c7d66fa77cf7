#include "point_classes.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>

#include "point_ranges.h"

namespace chimed {
namespace {

template <size_t size>
void mark(const PointRange (&ranges)[size], PointClass bit, std::vector<uint8_t>& classes) {
    for (const PointRange& range : ranges) {
        for (char32_t point = range.first; point <= range.last; ++point) classes[point] |= bit;
    }
}

}  // namespace

PointClasses::PointClasses() {
    std::vector<uint8_t> classes(0x110000);
    mark(LETTER_RANGES, LETTER, classes);
    mark(NUMBER_RANGES, NUMBER, classes);
    mark(SPACE_RANGES, SPACE, classes);
    mark(COMPOSING_RANGES, COMPOSING, classes);
    mark({{0xD800, 0xDFFF}}, SURROGATE, classes);
    classes['\r'] |= NEWLINE;
    classes['\n'] |= NEWLINE;
    for (size_t page = 0; page < page_of_.size(); ++page) {
        const auto begin = classes.begin() + ptrdiff_t(page << 8);
        size_t same = 0;
        while (same << 8 < pages_.size() && !std::equal(begin, begin + 256, &pages_[same << 8])) {
            ++same;
        }
        if (same << 8 == pages_.size()) pages_.insert(pages_.end(), begin, begin + 256);
        if (same > 255) throw std::length_error("code points of over 256 different pages");
        page_of_[page] = uint8_t(same);
    }
}

}  // namespace chimed
