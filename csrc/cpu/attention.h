// Attention of one new token per slot over the keys and values that a cache holds of it, for
// generation (Vaswani et al., arXiv 1706.03762, eq. 1). Every token reads its own positions and no
// more, and is computed alike whatever other tokens share the call.
#pragma once

#include "vec.h"

namespace {

// Keys and values are asked for so many places before they are needed: the cache of a batch is too
// large for any other.
constexpr int64_t kAhead = 16;

// weights[j] = exp(scale * (query . keys[j]) - max) for j in [0, length); returns their sum.
template <class Format>
CHIMED_INLINE inline float attention_weights(const typename Format::Element* query,
                                             const typename Format::Element* keys, float* weights,
                                             int64_t length, int64_t d, float scale) {
    int64_t j = 0;
    // Four keys at once: a query's vector is loaded once for them, and their sums do not wait for
    // one another.
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
                      const ChimedCache* shape) {
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
                const Element* query = (const Element*)query_ + token * shape->query_stride + head * d;
                const float sum = attention_weights<Format>(query, keys, weights, position + 1, d,
                                                            scale);
                weighted_sum<Format>(weights, values, (Element*)out_ + (token * n + head) * d,
                                     position + 1, d, 1.0f / sum);
            }
        }
    });
}

}  // namespace
