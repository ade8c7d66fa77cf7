// What kernels and ops have in common: they are compiled apart, with and without torch's headers.
#pragma once

#include <stdint.h>

// The storage format of a tensor whose address is passed as void*.
typedef enum { CHIMED_F32 = 0, CHIMED_F16 = 1, CHIMED_BF16 = 2 } ChimedDtype;

// AdamW's scalars. bias_correction_i = 1 - beta_i^step; gradients are multiplied by grad_scale.
// Doubles: what is derived from them, such as 1 - beta2, would lose digits in fp32.
typedef struct {
    double lr, beta1, beta2, eps, weight_decay, bias_correction1, bias_correction2, grad_scale;
} ChimedAdamW;
