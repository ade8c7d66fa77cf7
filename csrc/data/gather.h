// Copies the tokens of a sample from a mapped token file straight into the arrays of a batch, and
// fills the arrays that go with them.
//
// Nothing read from a file is trusted: a span that leaves the token file, or does not fill the
// output, throws std::out_of_range before anything is copied from it. The GIL is released, so all
// arguments are plain pointers that the bindings keep alive.
#pragma once

#include <cstdint>

namespace chimed {

// What a token file holds: a vector of integers of one of numpy's types.
template <typename Element>
struct Tokens {
    const Element* data;
    int64_t size;
};

// Pieces of a token file, one after another in the sample.
struct Spans {
    const int64_t* starts;
    const int64_t* lengths;
    int64_t count;
};

// Joins the spans into `ids`, which they must fill exactly.
template <typename Element>
void gather(Tokens<Element> tokens, Spans spans, int64_t* ids, int64_t size);

// Arrays [size] of one sample; a null pointer leaves one out.
struct Marks {
    int64_t* positions;   // starts again from 0 after each end of document
    float* loss_mask;     // 0 where the input is an end of document, else 1
    int32_t* segments;    // counts the ends of documents before a token
};

// Fills `marks` from the input ids of a sample.
void mark_documents(const int64_t* ids, int64_t size, int64_t end_of_document, Marks marks);

// Arrays [size] of one packed sample.
struct Pack {
    int64_t* tokens;
    int64_t* labels;
    int64_t* positions;
    float* loss_mask;
    int32_t* segments;
    int64_t size;
};

// Lays the spans, each a segment of its own, one after another. Labels are the tokens shifted
// within a segment, the loss mask is `targets` shifted alike, so a segment's last token predicts
// nothing. The rest is one more segment of id 0, which no loss is computed for.
template <typename Element>
void gather_pack(Tokens<Element> tokens, const uint8_t* targets, Spans spans, Pack pack);

}  // namespace chimed
