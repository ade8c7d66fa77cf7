// Text as Python holds it, which is what the encoders read.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace chimed {

// Code points of 1, 2 or 4 bytes.
struct Text {
    const void* data;
    int64_t length;  // code points
    int width;       // bytes of each
};

// A text that has no UTF-8 form, hence no ids.
struct LoneSurrogate : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace chimed
