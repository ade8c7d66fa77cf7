// What every op needs of a tensor. megatron_chimed/kernels has checked the arguments and explained
// what is wrong with them; these checks only keep a direct caller of torch.ops from a crash.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "chimed_types.h"

namespace chimed {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void require(bool holds, const char* message) {
    STD_TORCH_CHECK(holds, "chimed: ", message);
}

inline int dtype_of(const Tensor& x) {
    switch (x.scalar_type()) {
        case ScalarType::Float: return CHIMED_F32;
        case ScalarType::Half: return CHIMED_F16;
        case ScalarType::BFloat16: return CHIMED_BF16;
        default: require(false, "a tensor must be float32, float16 or bfloat16");
    }
    return -1;
}

inline void require_dense(const Tensor& x) {
    require(x.is_contiguous(), "a tensor must be contiguous");
}

// Both contiguous, of equal dtype and number of elements.
inline void require_twins(const Tensor& a, const Tensor& b) {
    require_dense(a);
    require_dense(b);
    require(a.scalar_type() == b.scalar_type(), "tensors must have one dtype");
    require(a.numel() == b.numel(), "tensors must have one shape");
}

inline void require_fp32(const Tensor& x, int64_t numel) {
    require_dense(x);
    require(x.scalar_type() == ScalarType::Float, "a tensor must be float32");
    require(x.numel() == numel, "a float32 tensor has the wrong number of elements");
}

inline void require_targets(const Tensor& target, int64_t numel) {
    require_dense(target);
    require(target.scalar_type() == ScalarType::Long, "target must be int64");
    require(target.numel() == numel, "target must have one id per row");
}

inline int64_t width_of(const Tensor& x) {
    require(x.dim() >= 1, "a tensor needs a last dimension");
    return x.size(x.dim() - 1);
}

// Product of the leading dimensions; an empty row counts as no row.
inline int64_t rows_of(const Tensor& x) {
    const int64_t width = width_of(x);
    return width ? x.numel() / width : 0;
}

inline void require_weight(const Tensor& weight, const Tensor& x) {
    require_dense(weight);
    require(weight.scalar_type() == x.scalar_type() && weight.numel() == width_of(x),
            "weight must have the width and dtype of x");
    require(width_of(x) > 0, "x must have a width");
}

// Uninitialised, of the dtype of x and its shape but for the last dimension.
inline Tensor with_width(const Tensor& x, int64_t width) {
    std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
    shape.back() = width;
    return torch::stable::new_empty(x, shape);
}

inline Tensor fp32_like(const Tensor& x, const std::vector<int64_t>& shape) {
    return torch::stable::new_empty(x, shape, ScalarType::Float);
}

template <class T = void>
inline const T* in(const Tensor& x) {
    return static_cast<const T*>(x.data_ptr());
}

template <class T = void>
inline T* out(const Tensor& x) {
    return static_cast<T*>(x.data_ptr());
}

}  // namespace chimed
