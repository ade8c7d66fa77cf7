// What the Python bindings of the encoders share: a list of str in, packed ids and lengths out.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <future>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "id_buffer.h"
#include "text.h"

namespace chimed {

namespace py = pybind11;

// Views of Python's own strings; `texts` must outlive them.
inline std::vector<Text> view_texts(const py::tuple& texts) {
    std::vector<Text> views;
    views.reserve(texts.size());
    for (const py::handle text : texts) {
        if (!PyUnicode_Check(text.ptr())) {
            throw py::type_error("text " + std::to_string(views.size()) + " is no str");
        }
#if PY_VERSION_HEX < 0x030C0000
        if (PyUnicode_READY(text.ptr()) != 0) throw py::error_already_set();
#endif
        views.push_back({PyUnicode_DATA(text.ptr()), int64_t(PyUnicode_GET_LENGTH(text.ptr())),
                         int(PyUnicode_KIND(text.ptr()))});
    }
    return views;
}

// First text of each share, and their number at the end; the shares have about as many characters.
inline std::vector<size_t> split_evenly(const std::vector<Text>& texts, size_t shares) {
    int64_t total = 0;
    for (const Text& text : texts) total += text.length + 1;
    std::vector<size_t> bounds{0};
    int64_t taken = 0;
    for (size_t i = 0; i < texts.size(); ++i) {
        if (taken * int64_t(shares) >= total * int64_t(bounds.size())) bounds.push_back(i);
        taken += texts[i].length + 1;
    }
    bounds.push_back(texts.size());
    return bounds;
}

// The ids of all shares as one array; those of a single share are not copied.
template <typename Id>
py::array_t<Id> join(std::vector<IdBuffer<Id>>& parts) {
    size_t total = 0;
    for (const auto& part : parts) total += part.size;
    if (parts.size() == 1) {
        Id* const ids = parts[0].release();
        const py::capsule owner(ids, [](void* data) { std::free(data); });
        return py::array_t<Id>(py::ssize_t(total), ids, owner);
    }
    py::array_t<Id> joined{py::ssize_t(total)};
    Id* target = joined.mutable_data();
    for (auto& part : parts) target = std::copy_n(part.data(), part.size, target);
    return joined;
}

// `work(views, first, count, ids, lengths)` encodes a share of the texts, without the GIL; it
// appends to `ids` and writes `lengths` from `first` on.
template <typename Id, typename Work>
py::tuple encode_shares(const py::tuple& texts, size_t threads, const Work& work) {
    const std::vector<Text> views = view_texts(texts);
    py::array_t<int32_t> lengths(py::ssize_t(views.size()));
    int32_t* const length = lengths.mutable_data();
    std::vector<IdBuffer<Id>> ids;
    {
        py::gil_scoped_release unlocked;
        const std::vector<size_t> bounds = split_evenly(views, threads);
        ids.resize(bounds.size() - 1);
        const auto encode = [&](size_t share) {
            const size_t first = bounds[share];
            work(views.data(), int64_t(first), int64_t(bounds[share + 1] - first), ids[share],
                 length);
        };
        std::vector<std::future<void>> others;  // their destructors wait for their threads
        for (size_t share = 1; share < ids.size(); ++share) {
            others.push_back(std::async(std::launch::async, encode, share));
        }
        encode(0);
        for (std::future<void>& other : others) other.get();
    }
    return py::make_tuple(join(ids), lengths);
}

// `make_work(kept)` gives the work on the texts that were kept alive.
template <typename MakeWork>
py::tuple encode_texts(const py::sequence& texts, size_t threads, bool wide,
                       const MakeWork& make_work) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    // A tuple of our own: another thread may change the list while the GIL is released.
    const py::tuple kept(texts);
    return wide ? encode_shares<int32_t>(kept, threads, make_work(kept))
                : encode_shares<uint16_t>(kept, threads, make_work(kept));
}

}  // namespace chimed
