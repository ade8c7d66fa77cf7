// Rotary embedding (Su et al., arXiv 2104.09864) of q and k in one launch, half-split convention:
// column i of a head is rotated with column i + d/2 by the angle whose cosine and sine are given.
//
// Bytes moved: q and k once in, once out; the fp32 angles are 1 % of that at 40 + 40 heads of 128.
// One block serves one token, so a thread keeps its cosines and sines for all heads. The inputs may
// be slices of a fused qkv projection: tokens and heads have strides, and no copy is made.
// The backward is the forward with the opposite angle.
// Absent: the interleaved convention, partial rotation, angles computed on the fly.

#include "chimed_types.h"

extern "C" {

// One of q and k: x [T, heads, d] with strides in elements and a dense last dimension, so that a
// slice of a fused qkv projection needs no copy; out is dense.
typedef struct {
    const void* x;
    void* out;
    int64_t heads, token_stride, head_stride;
} ChimedRope;

// d is even; cos and sin are fp32 [T, d / 2].
int chimed_cuda_rope(int dtype, const ChimedRope* q, const ChimedRope* k, const float* cos,
                     const float* sin, int64_t rows, int64_t d, int inverse, void* stream);

}

#ifndef CHIMED_BINDING

#include "device.cuh"
#include "launch.cuh"

namespace chimed {
namespace {

constexpr int kThreads = 256;

template <typename T>
struct Heads {
    const T* x;
    T* out;
    int64_t heads, token_stride, head_stride;

    explicit Heads(const ChimedRope& of)
        : x(static_cast<const T*>(of.x)),
          out(static_cast<T*>(of.out)),
          heads(of.heads),
          token_stride(of.token_stride),
          head_stride(of.head_stride) {}
};

// threadIdx.x walks the vectors of half a head, threadIdx.y the heads: those of q, then those of k.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    rope(const Heads<T> q, const Heads<T> k, const float* __restrict__ cos,
         const float* __restrict__ sin, int64_t half, float sign) {
    const int64_t token = blockIdx.x;
    for (int64_t v = threadIdx.x; v < half / kWidth; v += blockDim.x) {
        const Pack<float, kWidth> c = load<kWidth>(cos + token * half, v);
        const Pack<float, kWidth> s = load<kWidth>(sin + token * half, v);
        for (int64_t head = threadIdx.y; head < q.heads + k.heads; head += blockDim.y) {
            const bool in_q = head < q.heads;
            const Heads<T>& side = in_q ? q : k;
            const int64_t local = in_q ? head : head - q.heads;
            const T* x = side.x + token * side.token_stride + local * side.head_stride;
            T* out = side.out + (token * side.heads + local) * 2 * half;
            Pack<T, kWidth> first = load<kWidth>(x, v);
            Pack<T, kWidth> second = load<kWidth>(x + half, v);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                const float a = float(first.at[i]), b = float(second.at[i]);
                const float turn = sign * s.at[i];
                first.at[i] = T(a * c.at[i] - b * turn);
                second.at[i] = T(b * c.at[i] + a * turn);
            }
            store<kWidth>(out, v, first);
            store<kWidth>(out + half, v, second);
        }
    }
}

// The block's shape: as few passes over the heads as kThreads allow, and equally full ones.
dim3 block_shape(int64_t vectors, int64_t heads) {
    const int64_t x = std::min<int64_t>(vectors, kThreads);
    const int64_t passes = std::max<int64_t>(1, ceil_div(heads, kThreads / x));
    return dim3(unsigned(x), unsigned(std::max<int64_t>(1, ceil_div(heads, passes))));
}

template <typename T>
bool strides_vectorize(const ChimedRope& of) {
    return can_vectorize<T>(of.token_stride, {of.x, of.out}) &&
           can_vectorize<T>(of.head_stride, {});
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int chimed_cuda_rope(int dtype, const ChimedRope* q, const ChimedRope* k,
                                const float* cos, const float* sin, int64_t rows, int64_t d,
                                int inverse, void* stream) {
    const int64_t half = d / 2;
    const float sign = inverse ? -1.f : 1.f;
    return with_dtype(dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = kVectorWidth<T>;
        auto run = [&](auto kernel, int width) {
            return launch(kernel, rows, block_shape(half / width, q->heads + k->heads), stream,
                          Heads<T>(*q), Heads<T>(*k), cos, sin, half, sign);
        };
        const bool vectorize = can_vectorize<T>(half, {cos, sin}) && strides_vectorize<T>(*q) &&
                               strides_vectorize<T>(*k);
        // The fp32 packs of 8 angles are 32 bytes: half * 4 bytes is then a multiple of 32 too.
        const bool angles = (reinterpret_cast<uintptr_t>(cos) | reinterpret_cast<uintptr_t>(sin)) %
                                (kWidth * sizeof(float)) == 0;
        if (vectorize && angles) return run(rope<T, kWidth>, kWidth);
        return run(rope<T, 1>, 1);
    });
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

// x [T, n, d]: tokens and heads may be strided, d is dense.
Tensor rope_output(const Tensor& x, const Tensor& q) {
    require(x.dim() == 3 && x.size(0) == q.size(0) && x.size(2) == q.size(2),
            "q and k must be [T, n, d] with one T and one d");
    require(x.scalar_type() == q.scalar_type(), "q and k must have one dtype");
    require(x.size(2) % 2 == 0 && x.size(2) > 0, "the head width must be even");
    require(x.stride(2) == 1, "the elements of a head must be dense");
    return torch::stable::new_empty(
        x, std::vector<int64_t>{x.size(0), x.size(1), x.size(2)});
}

std::tuple<Tensor, Tensor> rope(const Tensor& q, const Tensor& k, const Tensor& cos,
                                const Tensor& sin, bool inverse) {
    const OnDevice here(q, {&k, &cos, &sin});
    Tensor q_out = rope_output(q, q), k_out = rope_output(k, q);
    const int64_t tokens = q.size(0), d = q.size(2);
    require_fp32(cos, tokens * (d / 2));
    require_fp32(sin, tokens * (d / 2));
    const ChimedRope q_side = {in(q), out(q_out), q.size(1), q.stride(0), q.stride(1)};
    const ChimedRope k_side = {in(k), out(k_out), k.size(1), k.stride(0), k.stride(1)};
    check(chimed_cuda_rope(dtype_of(q), &q_side, &k_side, in<float>(cos), in<float>(sin), tokens, d,
                           inverse, here.stream()),
          "rope");
    return {q_out, k_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("rope", TORCH_BOX(&rope));
}

}  // namespace chimed

#endif
