// __half of the emulation: the compiler's own 16-bit type.
#pragma once

struct __half {
    _Float16 bits;
    __half() = default;
    explicit __half(float value) : bits(static_cast<_Float16>(value)) {}
    operator float() const { return static_cast<float>(bits); }
};
