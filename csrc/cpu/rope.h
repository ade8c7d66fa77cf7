// Rotary position embedding in LLaMA's half-split convention: element i of a head is rotated with
// element i + d/2 (Su et al., arXiv 2104.09864, eq. 34). The backward is the inverse rotation.
#pragma once

#include "op.h"

struct RoPEKernels {
    // x [T, n, d] with token_stride between tokens, out dense; cos, sin fp32 [T, d/2].
    void (*rotate)(int dtype, const void* x, void* out, const float* cos, const float* sin,
                   int64_t begin, int64_t end, int64_t n, int64_t d, int64_t token_stride,
                   int inverse);
};
CHIMED_CPU_KERNELS(RoPEKernels, rope)

#ifndef CHIMED_BINDING

namespace {

void rope(int dtype, const void* x, void* out, const float* cos, const float* sin, int64_t begin,
          int64_t end, int64_t n, int64_t d, int64_t token_stride, int inverse) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        const int64_t half = d / 2;
        const float direction = inverse ? -1.0f : 1.0f;
        for (int64_t token = begin; token < end; ++token) {
            const float* c = cos + token * half;
            const float* s = sin + token * half;
            for (int64_t head = 0; head < n; ++head) {
                const Element* from = (const Element*)x + token * token_stride + head * d;
                Element* to = (Element*)out + (token * n + head) * d;
                for_each_vector(half, [&](int64_t i, auto lanes) CHIMED_INLINE {
                    const F32 first = load<Format>(from + i, lanes);
                    const F32 second = load<Format>(from + half + i, lanes);
                    const F32 cosine = load<Float32>(c + i, lanes);
                    const F32 sine = load<Float32>(s + i, lanes) * direction;
                    store<Format>(to + i, first * cosine - second * sine, lanes);
                    store<Format>(to + half + i, second * cosine + first * sine, lanes);
                });
            }
        }
    });
}

}  // namespace

const RoPEKernels CHIMED_TABLE(rope) = {rope};

#else

namespace chimed {
namespace {

Tensor rotated(const Tensor& x, const Tensor& cos, const Tensor& sin, bool inverse) {
    require(x.dim() == 3, "q and k must be [T, n, d]");
    const int64_t tokens = x.size(0), n = x.size(1), d = x.size(2);
    require(d % 2 == 0, "the head width must be even");
    require((d <= 1 || x.stride(2) == 1) && (n <= 1 || x.stride(1) == d),
            "the heads of a token must be dense");
    require_fp32(cos, tokens * (d / 2));
    require_fp32(sin, tokens * (d / 2));
    const int dtype = dtype_of(x);
    Tensor y = torch::stable::new_empty(x, std::vector<int64_t>{tokens, n, d});
    parallel_for(0, tokens, grain(n * d), [&](int64_t begin, int64_t end) {
        rope_kernels().rotate(dtype, in(x), out(y), in<float>(cos), in<float>(sin), begin, end, n,
                              d, x.stride(0), inverse);
    });
    return y;
}

std::tuple<Tensor, Tensor> rope(const Tensor& q, const Tensor& k, const Tensor& cos,
                                const Tensor& sin, bool inverse) {
    return {rotated(q, cos, sin, inverse), rotated(k, cos, sin, inverse)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("rope", TORCH_BOX(&rope));
}

}  // namespace chimed

#endif
