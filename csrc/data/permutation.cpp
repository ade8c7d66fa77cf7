#include <utility>

#include "helpers.h"
#include "philox.h"

namespace chimed {

template <typename Index>
void permutation(const ShuffleKey& key, int64_t size, Index* order) {
    Philox random({key.seed, key.stream}, {0, 0, key.epoch, 0});
    for (int64_t i = 0; i < size; ++i) order[i] = Index(i);
    for (int64_t i = size - 1; i > 0; --i) {
        std::swap(order[i], order[random.below(uint64_t(i) + 1)]);
    }
}

template void permutation(const ShuffleKey&, int64_t, int32_t*);
template void permutation(const ShuffleKey&, int64_t, int64_t*);

}  // namespace chimed
