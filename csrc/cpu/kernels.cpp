// All CPU kernels for one instruction set. Compiled once per level, each time with another -march
// and another CHIMED_LEVEL (baseline, avx2, avx512), the suffix of the tables that it exports.
#include "ops.h"
