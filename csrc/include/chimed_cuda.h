// The C ABI of csrc/cuda: what the CUDA kernels export and csrc/bind/cuda_ops.cpp calls.
//
// Every pointer is device memory of the current device unless it says "host"; stream is a
// cudaStream_t. A launcher enqueues and returns at once: 0, or a cudaError_t. Nothing allocates,
// nothing waits, no result depends on the order in which blocks run. rows = 0 enqueues no work
// except what its outputs need (dweight and a norm become zero).
// Meaning of the arguments and formulas: as in chimed_launch.h.
#pragma once

#include "chimed_launch.h"

#ifdef __cplusplus
extern "C" {
#endif

// The text of an error that a launcher returned.
const char* chimed_cuda_error_string(int error);

// residual and summed: both given (x + residual is rounded, stored and normalised) or both null.
int chimed_cuda_rms_norm_forward(int dtype, const void* x, const void* residual,
                                 const void* weight, void* y, void* summed, float* rstd,
                                 int64_t rows, int64_t h, float eps, void* stream);

// How many fp32 rows [h] of scratch the backward wants on the current device.
int64_t chimed_cuda_rms_norm_partials(int dtype, int64_t rows, int64_t h);

// dsummed may be null. partials: scratch fp32 [num_partials, h], num_partials as told above.
int chimed_cuda_rms_norm_backward(int dtype, const void* dy, const void* dsummed, const void* x,
                                  const void* weight, const float* rstd, void* dx, void* dweight,
                                  float* partials, int64_t num_partials, int64_t rows, int64_t h,
                                  void* stream);

int chimed_cuda_swiglu_forward(int dtype, const void* gate_up, void* y, int64_t rows, int64_t f,
                               void* stream);
int chimed_cuda_swiglu_backward(int dtype, const void* dy, const void* gate_up, void* dgate_up,
                                int64_t rows, int64_t f, void* stream);

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

// v < 2^30. max is -inf and sum 0 where valid <= 0.
int chimed_cuda_cross_entropy_stats(int dtype, const void* logits, const int64_t* target,
                                    float* max, float* sum, float* target_logit, int64_t rows,
                                    int64_t v, int64_t valid, int64_t vocab_start, void* stream);
int chimed_cuda_cross_entropy_backward(int dtype, void* logits, const int64_t* target,
                                       const float* log_sum_exp, const float* grad, int64_t rows,
                                       int64_t v, int64_t valid, int64_t vocab_start,
                                       float z_loss, void* stream);

// rows = b * n * sq, sk < 2^30. causal: column j is seen by query i where j <= i + sk - sq.
int chimed_cuda_softmax_forward(int dtype, const void* x, const uint8_t* mask, void* y,
                                int64_t rows, int64_t sq, int64_t sk, int64_t mask_period,
                                float scale, int causal, void* stream);
int chimed_cuda_softmax_backward(int dtype, const void* dy, const void* y, void* dx, int64_t rows,
                                 int64_t sk, float scale, void* stream);

// The lists are host arrays of `count` device pointers and sizes. copies: null, or twins of
// copy_dtype that receive the new parameters.
int chimed_cuda_adamw(int grad_dtype, int copy_dtype, int64_t count, float* const* params,
                      const void* const* grads, float* const* exp_avgs, float* const* exp_avg_sqs,
                      void* const* copies, const int64_t* sizes, const ChimedAdamW* settings,
                      void* stream);

// How many floats of scratch the norm of tensors of these (host) sizes wants.
int64_t chimed_cuda_l2_norm_partials(int64_t count, const int64_t* sizes);

// result: one float, the root of the sum of squares over all tensors. tensors, dtypes, sizes: host.
int chimed_cuda_l2_norm(int64_t count, const void* const* tensors, const int* dtypes,
                        const int64_t* sizes, float* partials, float* result, void* stream);

#ifdef __cplusplus
}
#endif
