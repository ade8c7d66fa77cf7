// All CPU kernels for one instruction set. Compiled once per level, each time with another -march
// and CHIMED_LEVEL (baseline, avx2, avx512), which names the table that it exports.
#include "adamw.h"
#include "attention.h"
#include "linear.h"
#include "rms_norm.h"
#include "rope.h"
#include "softmax.h"
#include "swiglu.h"

#define CHIMED_JOIN(a, b) a##b
#define CHIMED_TABLE(level) CHIMED_JOIN(chimed_cpu_kernels_, level)

extern "C" {
extern const ChimedCpuKernels CHIMED_TABLE(CHIMED_LEVEL);
const ChimedCpuKernels CHIMED_TABLE(CHIMED_LEVEL) = {
    rms_norm_forward, rms_norm_backward, sum_partials,        swiglu_forward,
    swiglu_backward,  rope,              cross_entropy_stats, cross_entropy_backward,
    softmax_forward,  softmax_backward,  adamw,               sum_of_squares,
    cached_attention, turn_rows,         invariant_linear,
};
}
