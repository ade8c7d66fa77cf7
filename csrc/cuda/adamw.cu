// AdamW (Loshchilov and Hutter, arXiv 1711.05101) over many tensors, with unscaling and clipping of
// the gradient and the 16-bit copy of the parameter folded in.
//
// Bytes moved per parameter: 28 (fp32 p, m, v read and written, fp32 gradient read) + 2 with a
// copy; a 16-bit gradient saves 2. The clip coefficient is part of grad_scale, so the gradients
// are not written back.
// Accesses are four elements wide, 16 bytes to the fp32 arrays, in each array whose alignment allows
// that. The shards of a distributed optimizer start anywhere in the flat gradients and weights, while
// moments and master weights are allocations of their own: so every array is accessed in the largest
// pieces that it allows, and the moments, most of the bytes, decide which elements form a vector.
// The moments hold what the scaled gradient gives. Nothing is summed over elements: the result does
// not depend on how tensors are grouped.
// Absent: amsgrad, L2 decay inside the gradient, skipping on overflow (decided by the caller).

#include "chimed_types.h"

extern "C" {

// The lists are host arrays of `count` device pointers and sizes. copies: null, or twins of
// copy_dtype that receive the new parameters.
int chimed_cuda_adamw(int grad_dtype, int copy_dtype, int64_t count, float* const* params,
                      const void* const* grads, float* const* exp_avgs, float* const* exp_avg_sqs,
                      void* const* copies, const int64_t* sizes, const ChimedAdamW* settings,
                      void* stream);

}

#ifndef CHIMED_BINDING

#include <cmath>

#include "device.cuh"
#include "launch.cuh"
#include "tensor_table.cuh"

namespace chimed {
namespace {

constexpr int kThreads = 512;
constexpr int kWidth = 4;  // a 16-byte access to the fp32 arrays, 8 bytes to a 16-bit twin

enum List { kParam, kGrad, kExpAvg, kExpAvgSq, kCopy, kLists };
using Table = TensorTable<kLists, 64>;

struct Scalars {
    float beta1, beta2, new1, new2;  // new = 1 - beta
    float step_size;                 // lr / (1 - beta1^step)
    float root_correction;           // 1 / sqrt(1 - beta2^step)
    float decay;                     // lr * weight_decay
    float eps, grad_scale;
};

// A kernel has 4 kB of parameters on every architecture and toolkit.
static_assert(sizeof(Table) + sizeof(Scalars) <= 4096, "the table must fit the parameters");

struct NoCopy {};

__device__ __forceinline__ void update(float& param, float& exp_avg, float& exp_avg_sq, float grad,
                                       const Scalars& by) {
    grad *= by.grad_scale;
    exp_avg = by.beta1 * exp_avg + by.new1 * grad;
    exp_avg_sq = by.beta2 * exp_avg_sq + by.new2 * grad * grad;
    // The decay is subtracted: 1 - decay would lose most of its digits to the 1.
    param -= by.decay * param;
    param -= by.step_size * exp_avg / (sqrtf(exp_avg_sq) * by.root_correction + by.eps);
}

// Elements in one access to each list: 4, 2 or 1.
struct Pieces {
    int of[kLists];
};

// kWidth elements from `from` on, in accesses of kPiece.
template <int kPiece, typename T>
__device__ __forceinline__ Pack<T, kWidth> load_pieces(const T* from) {
    Pack<T, kWidth> all;
#pragma unroll
    for (int i = 0; i < kWidth; i += kPiece) {
        const Pack<T, kPiece> piece = load<kPiece>(from + i, 0);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) all.at[i + j] = piece.at[j];
    }
    return all;
}

template <int kPiece, typename T>
__device__ __forceinline__ void store_pieces(T* to, const Pack<T, kWidth>& all) {
#pragma unroll
    for (int i = 0; i < kWidth; i += kPiece) {
        Pack<T, kPiece> piece;
#pragma unroll
        for (int j = 0; j < kPiece; ++j) piece.at[j] = all.at[i + j];
        store<kPiece>(to + i, 0, piece);
    }
}

// `piece` is the same for the whole block: its branches wait for no load.
template <typename T>
__device__ __forceinline__ Pack<T, kWidth> load_vector(const T* from, int piece) {
    if (piece == 4) return load_pieces<4>(from);
    if (piece == 2) return load_pieces<2>(from);
    return load_pieces<1>(from);
}

template <typename T>
__device__ __forceinline__ void store_vector(T* to, const Pack<T, kWidth>& all, int piece) {
    if (piece == 4) return store_pieces<4>(to, all);
    if (piece == 2) return store_pieces<2>(to, all);
    store_pieces<1>(to, all);
}

// The addresses of one tensor's element `offset`.
template <typename Grad, typename Copy>
struct Place {
    float *param, *exp_avg, *exp_avg_sq;
    const Grad* grad;
    Copy* copy;

    __device__ Place(const Table& table, int tensor, int64_t offset)
        : param(static_cast<float*>(table.data[kParam][tensor]) + offset),
          exp_avg(static_cast<float*>(table.data[kExpAvg][tensor]) + offset),
          exp_avg_sq(static_cast<float*>(table.data[kExpAvgSq][tensor]) + offset),
          grad(static_cast<const Grad*>(table.data[kGrad][tensor]) + offset),
          copy(static_cast<Copy*>(table.data[kCopy][tensor])) {
        if constexpr (!std::is_same<Copy, NoCopy>::value) copy += offset;
    }
};

template <typename Grad, typename Copy>
__device__ __forceinline__ void update_vector(const Place<Grad, Copy>& at, const Pieces& pieces,
                                              const Scalars& by) {
    Pack<float, kWidth> param = load_vector(at.param, pieces.of[kParam]);
    Pack<float, kWidth> exp_avg = load_vector(at.exp_avg, pieces.of[kExpAvg]);
    Pack<float, kWidth> exp_avg_sq = load_vector(at.exp_avg_sq, pieces.of[kExpAvgSq]);
    const Pack<Grad, kWidth> grad = load_vector(at.grad, pieces.of[kGrad]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
        update(param.at[i], exp_avg.at[i], exp_avg_sq.at[i], float(grad.at[i]), by);
    }
    store_vector(at.param, param, pieces.of[kParam]);
    store_vector(at.exp_avg, exp_avg, pieces.of[kExpAvg]);
    store_vector(at.exp_avg_sq, exp_avg_sq, pieces.of[kExpAvgSq]);
    if constexpr (!std::is_same<Copy, NoCopy>::value) {
        Pack<Copy, kWidth> copy;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) copy.at[i] = Copy(param.at[i]);
        store_vector(at.copy, copy, pieces.of[kCopy]);
    }
}

template <typename Grad, typename Copy>
__device__ __forceinline__ void update_one(const Place<Grad, Copy>& at, const Scalars& by) {
    update(*at.param, *at.exp_avg, *at.exp_avg_sq, float(*at.grad), by);
    if constexpr (!std::is_same<Copy, NoCopy>::value) *at.copy = Copy(*at.param);
}

// The largest piece of an array that starts at this address; of none (null), a whole vector.
template <typename T>
__device__ __forceinline__ int piece_at(const T* address) {
    const uintptr_t elements = reinterpret_cast<uintptr_t>(address) / sizeof(T);
    return elements % 4 == 0 ? 4 : elements % 2 == 0 ? 2 : 1;
}

template <typename Grad, typename Copy>
__global__ void __launch_bounds__(kThreads)
    adamw(const __grid_constant__ Table table, const __grid_constant__ Scalars by) {
    using Tensor = Place<Grad, Copy>;
    const int tensor = table.tensor_of(blockIdx.x);
    const int64_t begin = (blockIdx.x - table.first_block[tensor]) * kChunk;
    const int64_t left = table.size[tensor] - begin;
    const int count = int(left < kChunk ? left : kChunk);
    const Tensor start(table, tensor, begin);
    // So many elements come before the first that is aligned in exp_avg.
    const int before = int(-(reinterpret_cast<uintptr_t>(start.exp_avg) / sizeof(float)) % kWidth);
    const int head = before < count ? before : count;
    const int vectors = (count - head) / kWidth;
    const Tensor first(table, tensor, begin + head);
    const Pieces pieces = {{piece_at(first.param), piece_at(first.grad), kWidth,
                            piece_at(first.exp_avg_sq), piece_at(first.copy)}};
    constexpr Pieces whole = {{kWidth, kWidth, kWidth, kWidth, kWidth}};
    bool is_whole = true;
#pragma unroll
    for (int list = 0; list < kLists; ++list) is_whole = is_whole && pieces.of[list] == kWidth;
    if (is_whole) {
        for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
            update_vector(Tensor(table, tensor, begin + head + v * kWidth), whole, by);
        }
    } else {
        for (int v = threadIdx.x; v < vectors; v += blockDim.x) {
            update_vector(Tensor(table, tensor, begin + head + v * kWidth), pieces, by);
        }
    }
    // At most 3 elements before the vectors and 3 behind them.
    const int rest = count - vectors * kWidth;
    for (int i = threadIdx.x; i < rest; i += blockDim.x) {
        update_one(Tensor(table, tensor, begin + (i < head ? i : i + vectors * kWidth)), by);
    }
}

static_assert(kChunk % kWidth == 0, "a chunk starts on a vector boundary of its tensor");

Scalars scalars(const ChimedAdamW& from) {
    Scalars by;
    by.beta1 = float(from.beta1);
    by.beta2 = float(from.beta2);
    by.new1 = float(1.0 - from.beta1);
    by.new2 = float(1.0 - from.beta2);
    by.step_size = float(from.lr / from.bias_correction1);
    by.root_correction = float(1.0 / std::sqrt(from.bias_correction2));
    by.decay = float(from.lr * from.weight_decay);
    by.eps = float(from.eps);
    by.grad_scale = float(from.grad_scale);
    return by;
}

// Calls body(Copy{}) with the copies' type.
template <typename Body>
int with_copy(bool copies, int copy_dtype, Body body) {
    if (!copies) return body(NoCopy());
    switch (copy_dtype) {
        case CHIMED_F16: return body(__half());
        case CHIMED_BF16: return body(__nv_bfloat16());
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace
}  // namespace chimed

using namespace chimed;

extern "C" int chimed_cuda_adamw(int grad_dtype, int copy_dtype, int64_t count,
                                 float* const* params, const void* const* grads,
                                 float* const* exp_avgs, float* const* exp_avg_sqs,
                                 void* const* copies, const int64_t* sizes,
                                 const ChimedAdamW* settings, void* stream) {
    const Scalars by = scalars(*settings);
    auto flush = [&](Table& table) {
        return with_dtype(grad_dtype, [&](auto grad_tag) {
            return with_copy(copies != nullptr, copy_dtype, [&](auto copy_tag) {
                auto kernel = adamw<decltype(grad_tag), decltype(copy_tag)>;
                const int error = launch(kernel, table.blocks(), kThreads, stream, table, by);
                table.count = 0;
                return error;
            });
        });
    };
    Table table = {};
    for (int64_t i = 0; i < count; ++i) {
        if (sizes[i] == 0) continue;
        if (!table.has_room(sizes[i])) {
            const int error = flush(table);
            if (error != cudaSuccess) return error;
        }
        const int slot = table.append(sizes[i], CHIMED_F32);
        table.data[kParam][slot] = params[i];
        table.data[kGrad][slot] = const_cast<void*>(grads[i]);
        table.data[kExpAvg][slot] = exp_avgs[i];
        table.data[kExpAvgSq][slot] = exp_avg_sqs[i];
        table.data[kCopy][slot] = copies == nullptr ? nullptr : copies[i];
    }
    return flush(table);
}

#else

#include "../bind/cuda.h"

namespace chimed {
namespace {

// The addresses of tensors, checked to be dense, on this device, of one dtype and of the params'
// sizes.
std::vector<void*> addresses(const std::vector<Tensor>& tensors, const std::vector<Tensor>& params,
                             const OnDevice& here) {
    require(tensors.size() == params.size(), "adamw_ needs lists of one length");
    std::vector<void*> pointers;
    for (size_t i = 0; i < tensors.size(); ++i) {
        here.require_here(tensors[i]);
        require_dense(tensors[i]);
        require(tensors[i].scalar_type() == tensors[0].scalar_type(),
                "the tensors of a list must have one dtype");
        require(tensors[i].numel() == params[i].numel(), "lists must agree in their sizes");
        pointers.push_back(out(tensors[i]));
    }
    return pointers;
}

std::vector<float*> fp32_addresses(const std::vector<Tensor>& tensors,
                                   const std::vector<Tensor>& params, const OnDevice& here) {
    std::vector<float*> pointers;
    for (void* pointer : addresses(tensors, params, here)) {
        pointers.push_back(static_cast<float*>(pointer));
    }
    require(tensors[0].scalar_type() == ScalarType::Float, "parameters and moments are float32");
    return pointers;
}

void adamw_(const std::vector<Tensor>& params, const std::vector<Tensor>& grads,
            const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
            const std::vector<Tensor>& copies, double lr, double beta1, double beta2, double eps,
            double weight_decay, int64_t step, double grad_scale) {
    if (params.empty()) return;
    const OnDevice here(params[0]);
    const ChimedAdamW settings =
        adamw_scalars(lr, beta1, beta2, eps, weight_decay, step, grad_scale);
    const auto param = fp32_addresses(params, params, here);
    const auto exp_avg = fp32_addresses(exp_avgs, params, here);
    const auto exp_avg_sq = fp32_addresses(exp_avg_sqs, params, here);
    const auto grad = addresses(grads, params, here);
    const auto copy = copies.empty() ? std::vector<void*>() : addresses(copies, params, here);
    std::vector<int64_t> sizes;
    for (const Tensor& x : params) sizes.push_back(x.numel());
    check(chimed_cuda_adamw(dtype_of(grads[0]), copies.empty() ? CHIMED_F32 : dtype_of(copies[0]),
                            int64_t(params.size()), param.data(), grad.data(), exp_avg.data(),
                            exp_avg_sq.data(), copies.empty() ? nullptr : copy.data(), sizes.data(),
                            &settings, here.stream()),
          "adamw_");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(chimed, CUDA, m) {
    m.impl("adamw_", TORCH_BOX(&adamw_));
}

}  // namespace chimed

#endif
