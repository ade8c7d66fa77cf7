// The CPU side of all ops, and the choice of the instruction set that their kernels use.
#include "../cpu/ops.h"

#include <atomic>

namespace chimed {
namespace {

int best_level() {
#ifdef __x86_64__
    if (__builtin_cpu_supports("x86-64-v4")) return 2;
    if (__builtin_cpu_supports("x86-64-v3")) return 1;
#endif
    return 0;
}

std::atomic<int>& level_cell() {
    static std::atomic<int> level{best_level()};
    return level;
}

// Chooses a level for the whole process, if this machine has it; returns the level in use. -1 only
// asks. For tests and benchmarks.
int64_t cpu_level(int64_t level) {
    if (level >= 0 && level <= best_level()) level_cell().store(int(level));
    return level_in_use();
}

}  // namespace

int level_in_use() { return level_cell().load(); }

}  // namespace chimed

STABLE_TORCH_LIBRARY_FRAGMENT(chimed, m) { m.def("cpu_level(int level) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(chimed, CompositeExplicitAutograd, m) {
    m.impl("cpu_level", TORCH_BOX(&chimed::cpu_level));
}
