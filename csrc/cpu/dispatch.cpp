// Which kernels this machine can run. On other processors than x86-64 only the baseline exists,
// compiled for whatever vectors that architecture always has.
#include "chimed_launch.h"

extern "C" {

extern const ChimedCpuKernels chimed_cpu_kernels_baseline;
#if defined(__x86_64__)
extern const ChimedCpuKernels chimed_cpu_kernels_avx2;
extern const ChimedCpuKernels chimed_cpu_kernels_avx512;
#endif

int chimed_cpu_best_level(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("x86-64-v4")) return CHIMED_CPU_AVX512;
    if (__builtin_cpu_supports("x86-64-v3")) return CHIMED_CPU_AVX2;
#endif
    return CHIMED_CPU_BASELINE;
}

const ChimedCpuKernels* chimed_cpu_kernels(int level) {
    if (level > chimed_cpu_best_level()) return nullptr;
#if defined(__x86_64__)
    if (level == CHIMED_CPU_AVX512) return &chimed_cpu_kernels_avx512;
    if (level == CHIMED_CPU_AVX2) return &chimed_cpu_kernels_avx2;
#endif
    return level == CHIMED_CPU_BASELINE ? &chimed_cpu_kernels_baseline : nullptr;
}

}
