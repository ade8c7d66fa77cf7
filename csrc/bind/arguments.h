// Checks and numbers that the CPU and the CUDA side of an op have in common.
#pragma once

#include <cmath>

#include "tensors.h"

namespace chimed {

inline void require_logits(const Tensor& logits, const Tensor& target) {
    require_dense(logits);
    require_targets(target, rows_of(logits));
}

// Columns of this slice of the vocabulary that are not padding.
inline int64_t valid_columns(const Tensor& logits, int64_t vocab_start, int64_t vocab_size) {
    const int64_t width = width_of(logits), left = vocab_size - vocab_start;
    return left < 0 ? 0 : left < width ? left : width;
}

// How many rows of the scores x [b, n, sq, sk] share a mask: n * sq, or 0 if all of them do.
inline int64_t mask_period(const Tensor& mask, const Tensor& x) {
    const int64_t n = x.size(1), sq = x.size(2), sk = x.size(3);
    require_dense(mask);
    require(mask.scalar_type() == ScalarType::Bool && mask.dim() == 4
                && (mask.size(0) == 1 || mask.size(0) == x.size(0))
                && mask.numel() == mask.size(0) * sq * sk,
            "mask must be bool [b or 1, 1, sq, sk]");
    return mask.size(0) == 1 ? 0 : n * sq;
}

inline ChimedAdamW adamw_scalars(double lr, double beta1, double beta2, double eps,
                                 double weight_decay, int64_t step, double grad_scale) {
    require(step >= 1, "step counts from 1");
    return {lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            1.0 - std::pow(beta1, double(step)),
            1.0 - std::pow(beta2, double(step)),
            grad_scale};
}

}  // namespace chimed
