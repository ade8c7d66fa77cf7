// The C ABI between kernels and bindings: what csrc/cpu and csrc/cuda export, csrc/bind calls.
//
// No torch and no CUDA header is needed to read this file. Tensors are void* to contiguous data of
// the stated ChimedDtype unless a stride is given; sizes are in elements. Arithmetic is fp32.
// T = rows (product of the leading dimensions), h = hidden size, f = ffn size, v = columns.
// Arguments are checked by the bindings and the Python faces: kernels trust them.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { CHIMED_F32 = 0, CHIMED_F16 = 1, CHIMED_BF16 = 2 } ChimedDtype;

// AdamW's scalars. bias_correction_i = 1 - beta_i^step; gradients are multiplied by grad_scale.
// Doubles: what is derived from them, such as 1 - beta2, would lose digits in fp32.
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale;
} ChimedAdamW;

// A cache of keys and values, [slots, k, max_length, d] each, and the tokens that meet it: n query
// and k key heads of width d, strides between tokens, `longest` fp32 weights of scratch per token.
typedef struct {
    int64_t n, k, d, max_length, longest, query_stride, key_stride, value_stride;
} ChimedCache;

// ------------------------------------------------------------------------------------------ CPU
// Every CPU kernel works on rows [begin, end), so that the caller owns the threading, and gives a
// row the same bits whatever range it is part of. One table exists per instruction set level.

typedef struct {
    // y = (x * rstd) * weight; rstd = 1 / sqrt(mean(x^2) + eps), fp32 [T]. With a residual:
    // summed = x + residual is written and normalised instead of x; both may be null.
    void (*rms_norm_forward)(int dtype, const void* x, const void* residual, const void* weight,
                             void* y, void* summed, float* rstd, int64_t begin, int64_t end,
                             int64_t h, float eps);
    // dweight_partial: fp32 [h], overwritten by the sum over these rows. dsummed (may be null) is
    // the gradient that reaches the sum beside the norm; it is added to dx.
    void (*rms_norm_backward)(int dtype, const void* dy, const void* dsummed, const void* x,
                              const void* weight, const float* rstd, void* dx,
                              float* dweight_partial, int64_t begin, int64_t end, int64_t h);
    // out[begin:end] = sum over n of partials[n, begin:end]; partials fp32 [n, h], out of dtype.
    void (*sum_partials)(int dtype, const float* partials, void* out, int64_t num_partials,
                         int64_t begin, int64_t end, int64_t h);
    // gate_up [T, 2f], gate first; y [T, f] = silu(gate) * up.
    void (*swiglu_forward)(int dtype, const void* gate_up, void* y, int64_t begin, int64_t end,
                           int64_t f);
    void (*swiglu_backward)(int dtype, const void* dy, const void* gate_up, void* dgate_up,
                            int64_t begin, int64_t end, int64_t f);
    // x [T, n, d] with token_stride between tokens, out dense; cos, sin fp32 [T, d/2].
    void (*rope)(int dtype, const void* x, void* out, const float* cos, const float* sin,
                 int64_t begin, int64_t end, int64_t n, int64_t d, int64_t token_stride,
                 int inverse);
    // logits [T, v]; only the first `valid` columns count; target: global ids, local column =
    // target - vocab_start; max, sum = sum(exp(x - max)), target_logit (0 if not local): fp32 [T].
    void (*cross_entropy_stats)(int dtype, const void* logits, const int64_t* target, float* max,
                                float* sum, float* target_logit, int64_t begin, int64_t end,
                                int64_t v, int64_t valid, int64_t vocab_start);
    // logits <- grad * ((1 + 2 * z_loss * lse) * softmax - onehot); 0 where grad is 0.
    void (*cross_entropy_backward)(int dtype, void* logits, const int64_t* target,
                                   const float* log_sum_exp, const float* grad, int64_t begin,
                                   int64_t end, int64_t v, int64_t valid, int64_t vocab_start,
                                   float z_loss);
    // x [b, n, sq, sk], rows = b * n * sq; mask bool [b or 1, 1, sq, sk] or null, true = masked;
    // mask_period: rows of x per mask image (n * sq), or 0 for one mask for all.
    void (*softmax_forward)(int dtype, const void* x, const uint8_t* mask, void* y, int64_t begin,
                            int64_t end, int64_t sq, int64_t sk, int64_t mask_period, float scale,
                            int causal);
    // dx = scale * y * (dy - sum(dy * y))
    void (*softmax_backward)(int dtype, const void* dy, const void* y, void* dx, int64_t begin,
                             int64_t end, int64_t sk, float scale);
    // Elements [begin, end) of one tensor; copy (may be null) gets param in copy_dtype.
    void (*adamw)(int grad_dtype, int copy_dtype, float* param, const void* grad, float* exp_avg,
                  float* exp_avg_sq, void* copy, int64_t begin, int64_t end,
                  const ChimedAdamW* settings);
    double (*sum_of_squares)(int dtype, const void* x, int64_t begin, int64_t end);
    // Token t of slots[t] at positions[t]: its key and value enter the cache, and out [T, n, d] is
    // its query's attention over positions 0 to its own. No two tokens may have one slot.
    void (*cached_attention)(int dtype, const void* query, const void* key, const void* value,
                             void* keys, void* values, const int64_t* slots,
                             const int64_t* positions, float* weights, void* out, int64_t begin,
                             int64_t end, const ChimedCache* shape);
    // x [rows, k] -> fp32 [k, padded], zeros beyond rows.
    void (*turn_rows)(int dtype, const void* x, float* turned, int64_t rows, int64_t padded,
                      int64_t k);
    // Columns [begin, end) of y [rows, n] = x * weight^T; x as `turn_rows` gives it, padded to a
    // multiple of 16; weight [n, k].
    void (*invariant_linear)(int dtype, const float* turned, const void* weight, void* y,
                        int64_t begin, int64_t end, int64_t rows, int64_t padded, int64_t k,
                        int64_t n);
} ChimedCpuKernels;

enum { CHIMED_CPU_BASELINE = 0, CHIMED_CPU_AVX2 = 1, CHIMED_CPU_AVX512 = 2 };

// The highest level that this machine and this build have.
int chimed_cpu_best_level(void);
// The kernels of a level; null if this machine or this build lacks it.
const ChimedCpuKernels* chimed_cpu_kernels(int level);

// ----------------------------------------------------------------------------------------- CUDA

#ifdef __cplusplus
}
#endif
