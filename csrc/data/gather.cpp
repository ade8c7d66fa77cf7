#include "gather.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace chimed {

namespace {

constexpr int64_t kPaddingId = 0;  // any id of the vocabulary: nothing sees or scores it

// Throws unless the span lies in the token file and in what is left of the sample.
void check_span(int64_t start, int64_t length, int64_t tokens, int64_t room) {
    if (start < 0 || length < 0 || start > tokens || length > tokens - start) {
        throw std::out_of_range("tokens " + std::to_string(start) + "+" + std::to_string(length)
                                + " of a token file of " + std::to_string(tokens));
    }
    if (length > room) {
        throw std::out_of_range("a piece of " + std::to_string(length)
                                + " tokens where the sample has room for "
                                + std::to_string(room));
    }
}

// Positions 0, 1, 2, ... of one piece; written so that compilers vectorise it.
void count_up(int64_t* positions, int64_t length) {
    for (int64_t i = 0; i < length; ++i) positions[i] = i;
}

}  // namespace

template <typename Element>
void gather(Tokens<Element> tokens, Spans spans, int64_t* ids, int64_t size) {
    int64_t filled = 0;
    for (int64_t k = 0; k < spans.count; ++k) {
        const int64_t length = spans.lengths[k];
        check_span(spans.starts[k], length, tokens.size, size - filled);
        std::copy_n(tokens.data + spans.starts[k], length, ids + filled);
        filled += length;
    }
    if (filled != size) {
        throw std::out_of_range("the pieces hold " + std::to_string(filled) + " tokens of "
                                + std::to_string(size));
    }
}

void mark_documents(const int64_t* ids, int64_t size, int64_t end_of_document, Marks marks) {
    int64_t first = 0;
    int32_t segment = 0;
    while (first < size) {
        const int64_t* found = std::find(ids + first, ids + size, end_of_document);
        const bool has_end = found != ids + size;
        const int64_t length = found - (ids + first) + int64_t(has_end);
        if (marks.positions != nullptr) count_up(marks.positions + first, length);
        if (marks.segments != nullptr) std::fill_n(marks.segments + first, length, segment);
        if (marks.loss_mask != nullptr) {
            std::fill_n(marks.loss_mask + first, length, 1.0f);
            if (has_end) marks.loss_mask[first + length - 1] = 0.0f;
        }
        first += length;
        ++segment;
    }
}

template <typename Element>
void gather_pack(Tokens<Element> tokens, const uint8_t* targets, Spans spans, Pack pack) {
    int64_t filled = 0;
    int32_t segment = 0;
    for (int64_t k = 0; k < spans.count; ++k) {
        const int64_t start = spans.starts[k];
        const int64_t length = spans.lengths[k];
        check_span(start, length, tokens.size, pack.size - filled);
        if (length == 0) continue;
        const Element* from = tokens.data + start;
        const uint8_t* is_target = targets + start;
        const int64_t last = filled + length - 1;
        std::copy_n(from, length, pack.tokens + filled);
        std::copy_n(from + 1, length - 1, pack.labels + filled);
        std::copy_n(is_target + 1, length - 1, pack.loss_mask + filled);
        pack.labels[last] = kPaddingId;
        pack.loss_mask[last] = 0.0f;
        count_up(pack.positions + filled, length);
        std::fill_n(pack.segments + filled, length, segment++);
        filled += length;
    }
    const int64_t padding = pack.size - filled;
    std::fill_n(pack.tokens + filled, padding, kPaddingId);
    std::fill_n(pack.labels + filled, padding, kPaddingId);
    std::fill_n(pack.loss_mask + filled, padding, 0.0f);
    count_up(pack.positions + filled, padding);
    std::fill_n(pack.segments + filled, padding, segment);
}

#define CHIMED_INSTANTIATE(Element)                                               \
    template void gather(Tokens<Element>, Spans, int64_t*, int64_t);              \
    template void gather_pack(Tokens<Element>, const uint8_t*, Spans, Pack);

CHIMED_INSTANTIATE(uint8_t)
CHIMED_INSTANTIATE(int8_t)
CHIMED_INSTANTIATE(uint16_t)
CHIMED_INSTANTIATE(int16_t)
CHIMED_INSTANTIATE(int32_t)
CHIMED_INSTANTIATE(int64_t)

#undef CHIMED_INSTANTIATE

}  // namespace chimed
