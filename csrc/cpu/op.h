// What every op of this folder includes first. Its source is compiled without torch for each
// instruction set (the kernels), and once with torch (the op, under CHIMED_BINDING). The two halves
// meet in a table of function pointers, of which each instruction set exports one.
//
//   struct FooKernels { void (*forward)(...); };
//   CHIMED_CPU_KERNELS(FooKernels, foo)           // declares the tables
//   #ifndef CHIMED_BINDING
//   const FooKernels CHIMED_TABLE(foo) = {...};   // defines the table of this instruction set
//   #else
//   ... foo_kernels().forward(...)                // calls the kernels of the level in use
//   #endif
#pragma once

#include "chimed_types.h"

#ifndef CHIMED_BINDING

#include "vec.h"

#define CHIMED_JOIN(a, b) a##b
#define CHIMED_LEVEL_NAME(prefix, level) CHIMED_JOIN(prefix, level)
#define CHIMED_TABLE(op) CHIMED_LEVEL_NAME(chimed_##op##_, CHIMED_LEVEL)

// With `extern`, since a const is otherwise local to its file.
#define CHIMED_CPU_KERNELS(Kernels, op) extern "C" { extern const Kernels CHIMED_TABLE(op); }

#else

#include "../bind/cpu.h"

#ifdef __x86_64__
#define CHIMED_CPU_KERNELS(Kernels, op)                                                        \
    extern "C" {                                                                               \
    extern const Kernels chimed_##op##_baseline, chimed_##op##_avx2, chimed_##op##_avx512;     \
    }                                                                                          \
    static const Kernels& op##_kernels() {                                                     \
        static const Kernels* const of_level[] = {&chimed_##op##_baseline, &chimed_##op##_avx2, \
                                                  &chimed_##op##_avx512};                      \
        return *of_level[chimed::level_in_use()];                                              \
    }
#else
#define CHIMED_CPU_KERNELS(Kernels, op)                         \
    extern "C" { extern const Kernels chimed_##op##_baseline; } \
    static const Kernels& op##_kernels() { return chimed_##op##_baseline; }
#endif

#endif
