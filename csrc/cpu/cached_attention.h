// Attention of one new token per slot over the keys and values that a cache holds of it, for
// generation (Vaswani et al., arXiv 1706.03762, eq. 1). A token reads only its own positions and
// gets the same bits whatever other tokens share the call.
#pragma once

#include "op.h"

// A cache of keys and values, [slots, k, max_length, d] each, and the tokens that meet it: n query
// and k key heads of width d, strides between tokens, `longest` fp32 weights of scratch per token.
struct CacheShape {
    int64_t n, k, d, max_length, longest, query_stride, key_stride, value_stride;
};

struct CachedAttentionKernels {
    // Token t of slots[t] at positions[t]: its key and value enter the cache, and out [T, n, d] is
    // its query's attention over positions 0 to its own. No two tokens may have one slot.
    void (*step)(int dtype, const void* query, const void* key, const void* value, void* keys,
                 void* values, const int64_t* slots, const int64_t* positions, float* weights,
                 void* out, int64_t begin, int64_t end, const CacheShape* shape);
};
CHIMED_CPU_KERNELS(CachedAttentionKernels, cached_attention)

#ifndef CHIMED_BINDING

namespace {

// Keys and values are prefetched this many positions ahead: the cache of a batch exceeds every
// processor cache.
constexpr int64_t kAhead = 16;

// weights[j] = exp(scale * (query . keys[j]) - max) for j in [0, length); returns their sum.
template <class Format>
CHIMED_INLINE inline float attention_weights(const typename Format::Element* query,
                                             const typename Format::Element* keys, float* weights,
                                             int64_t length, int64_t d, float scale) {
    int64_t j = 0;
    // Four keys at once: they share each load of the query, and their sums are independent.
    for (; j + 4 <= length; j += 4) {
        F32 sums[4] = {};
        for_each_vector(d, [&](int64_t i, auto lanes) CHIMED_INLINE {
            for (int u = 0; u < 4; ++u) __builtin_prefetch(keys + (j + u + kAhead) * d + i);
            const F32 q = load<Format>(query + i, lanes);
            for (int u = 0; u < 4; ++u) sums[u] += q * load<Format>(keys + (j + u) * d + i, lanes);
        });
        for (int u = 0; u < 4; ++u) weights[j + u] = scale * horizontal_sum(sums[u]);
    }
    for (; j < length; ++j) {
        F32 sum = {};
        for_each_vector(d, [&](int64_t i, auto lanes) CHIMED_INLINE {
            sum += load<Format>(query + i, lanes) * load<Format>(keys + j * d + i, lanes);
        });
        weights[j] = scale * horizontal_sum(sum);
    }
    const float max = max_over(length, [&](int64_t i, auto lanes) CHIMED_INLINE {
        return load<Float32>(weights + i, lanes);
    });
    return sum_over(length, [&](int64_t i, auto lanes) CHIMED_INLINE {
        const F32 weight = exp(load<Float32>(weights + i, lanes) - max);
        store<Float32>(weights + i, weight, lanes);
        return with_fill(weight, 0.0f, lanes);
    });
}

// out = sum over j of weights[j] * values[j], times norm; up to four vectors of a head at a time.
template <class Format>
CHIMED_INLINE inline void weighted_sum(const float* weights,
                                       const typename Format::Element* values,
                                       typename Format::Element* out, int64_t length, int64_t d,
                                       float norm) {
    int64_t i = 0;
    for (; i + 4 * kLanes <= d; i += 4 * kLanes) {
        F32 sums[4] = {};
        for (int64_t j = 0; j < length; ++j)
            for (int u = 0; u < 4; ++u) {
                const auto* value = values + j * d + i + u * kLanes;
                __builtin_prefetch(value + kAhead * d);
                sums[u] += weights[j] * load<Format>(value, All{});
            }
        for (int u = 0; u < 4; ++u) store<Format>(out + i + u * kLanes, sums[u] * norm, All{});
    }
    for_each_vector(d - i, [&](int64_t rest, auto lanes) CHIMED_INLINE {
        F32 sum = {};
        for (int64_t j = 0; j < length; ++j)
            sum += weights[j] * load<Format>(values + j * d + i + rest, lanes);
        store<Format>(out + i + rest, sum * norm, lanes);
    });
}

void cached_attention(int dtype, const void* query_, const void* key_, const void* value_,
                      void* keys_, void* values_, const int64_t* slots, const int64_t* positions,
                      float* weights_, void* out_, int64_t begin, int64_t end,
                      const CacheShape* shape) {
    with_format(dtype, [&](auto format) {
        using Format = decltype(format);
        using Element = typename Format::Element;
        const int64_t n = shape->n, k = shape->k, d = shape->d;
        const float scale = 1.0f / __builtin_sqrtf(float(d));
        for (int64_t token = begin; token < end; ++token) {
            float* weights = weights_ + token * shape->longest;
            const int64_t position = positions[token];
            for (int64_t head = 0; head < n; ++head) {
                const int64_t group = head / (n / k);
                const int64_t start = (slots[token] * k + group) * shape->max_length * d;
                Element* keys = (Element*)keys_ + start;
                Element* values = (Element*)values_ + start;
                if (head % (n / k) == 0) {
                    const size_t size = size_t(d) * sizeof(Element);
                    memcpy(keys + position * d,
                           (const Element*)key_ + token * shape->key_stride + group * d, size);
                    memcpy(values + position * d,
                           (const Element*)value_ + token * shape->value_stride + group * d, size);
                }
                const Element* query =
                    (const Element*)query_ + token * shape->query_stride + head * d;
                const float sum = attention_weights<Format>(query, keys, weights, position + 1, d,
                                                            scale);
                weighted_sum<Format>(weights, values, (Element*)out_ + (token * n + head) * d,
                                     position + 1, d, 1.0f / sum);
            }
        }
    });
}

}  // namespace

const CachedAttentionKernels CHIMED_TABLE(cached_attention) = {cached_attention};

#else

namespace chimed {
namespace {

// The stride between tokens of x [T, heads, d].
int64_t token_stride(const Tensor& x, int64_t tokens, int64_t heads, int64_t d) {
    require(x.dim() == 3 && x.size(0) == tokens && x.size(1) == heads && x.size(2) == d,
            "query, key and value must be [T, heads, d]");
    require((d <= 1 || x.stride(2) == 1) && (heads <= 1 || x.stride(1) == d),
            "the heads of a token must be dense");
    return x.stride(0);
}

Tensor cached_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                        const Tensor& keys, const Tensor& values, const Tensor& slots,
                        const Tensor& positions) {
    require(query.dim() == 3 && keys.dim() == 4, "query is [T, n, d], keys [slots, k, max, d]");
    require_twins(keys, values);
    const int64_t tokens = query.size(0), n = query.size(1), d = query.size(2), k = keys.size(1);
    const int dtype = dtype_of(keys);
    for (const Tensor* x : {&query, &key, &value})
        require(dtype_of(*x) == dtype, "tensors must have one dtype");
    require(k > 0 && n % k == 0 && keys.size(3) == d && d > 0, "heads must fit the cache");
    require_targets(slots, tokens);
    require_targets(positions, tokens);
    int64_t longest = 0;
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t slot = in<int64_t>(slots)[t], position = in<int64_t>(positions)[t];
        require(slot >= 0 && slot < keys.size(0) && position >= 0 && position < keys.size(2),
                "a token must lie within the cache");
        longest = std::max(longest, position + 1);
    }
    const CacheShape shape = {n, k, d, keys.size(2), longest, token_stride(query, tokens, n, d),
                               token_stride(key, tokens, k, d), token_stride(value, tokens, k, d)};
    Tensor result = torch::stable::new_empty(query, std::vector<int64_t>{tokens, n, d});
    Tensor weights = fp32_like(query, {tokens, longest});
    parallel_for(0, tokens, grain(longest * n), [&](int64_t begin, int64_t end) {
        cached_attention_kernels().step(dtype, in(query), in(key), in(value), out(keys),
                                        out(values), in<int64_t>(slots), in<int64_t>(positions),
                                        out<float>(weights), out(result), begin, end, &shape);
    });
    return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CPU, m) {
    m.impl("cached_attention", TORCH_BOX(&cached_attention));
}

}  // namespace chimed

#endif
