// All CPU kernels for one instruction set. Compiled once per level, each time with another -march
// and CHIMED_LEVEL (baseline, avx2, avx512), which ends the names of the tables that it exports.
#include "ops.h"
