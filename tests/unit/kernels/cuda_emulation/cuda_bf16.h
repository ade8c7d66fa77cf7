// __nv_bfloat16 of the emulation: the upper half of a float, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        uint32_t word;
        std::memcpy(&word, &value, sizeof(word));
        const bool nan = (word & 0x7fffffffu) > 0x7f800000u;
        bits = nan ? 0x7fff : uint16_t((word + 0x7fffu + ((word >> 16) & 1u)) >> 16);
    }
    operator float() const {
        const uint32_t word = uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &word, sizeof(value));
        return value;
    }
};
