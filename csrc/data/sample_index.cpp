#include "helpers.h"

namespace chimed {

template <typename Index>
bool sample_index(const int32_t* lengths, const Index* order, int64_t documents,
                  int64_t seq_length, int64_t samples, int64_t* rows) {
    int64_t place = 0;   // in `order`
    int64_t offset = 0;  // of the next sample's first token within that document
    for (int64_t sample = 0; sample <= samples; ++sample) {
        // A start may lie at a document's end: step over it and over empty documents.
        while (place < documents && offset >= lengths[order[place]]) {
            offset -= lengths[order[place]];
            ++place;
        }
        if (place == documents) return false;
        rows[2 * sample] = place;
        rows[2 * sample + 1] = offset;
        offset += seq_length;
    }
    return true;
}

template bool sample_index(const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int64_t*);
template bool sample_index(const int32_t*, const int64_t*, int64_t, int64_t, int64_t, int64_t*);

}  // namespace chimed
