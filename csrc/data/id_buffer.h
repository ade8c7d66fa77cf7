// A growing array of ids that neither touches nor copies more memory than its ids take.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

namespace chimed {

// Grows by realloc, which moves large blocks by remapping their pages; pages that are not written
// yet take no memory. A vector would write them and hold the old and the new block at once.
template <typename Id>
class IdBuffer {
public:
    Id* data() { return data_.get(); }
    size_t capacity() const { return capacity_; }

    // Makes room for at least this many ids.
    void reserve(size_t count) {
        if (count > capacity_) resize(count + capacity_ / 2);
    }

    // How many ids are in use once all are written.
    size_t size = 0;

    // The memory of exactly `size` ids, to be freed by std::free.
    Id* release() {
        resize(size);
        return data_.release();
    }

private:
    struct Free {
        void operator()(Id* data) const { std::free(data); }
    };

    void resize(size_t count) {
        void* const moved = std::realloc(data_.get(), (count + 1) * sizeof(Id));  // never 0 bytes
        if (moved == nullptr) throw std::bad_alloc();
        static_cast<void>(data_.release());
        data_.reset(static_cast<Id*>(moved));
        capacity_ = count;
    }

    std::unique_ptr<Id[], Free> data_;
    size_t capacity_ = 0;
};

}  // namespace chimed
