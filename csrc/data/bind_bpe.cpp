// The encoder's Python bindings: a list of str in, packed ids and lengths out.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdlib>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bpe.h"

namespace py = pybind11;

namespace {

using chimed::BpeEncoder;
using chimed::Text;

// Views of Python's own strings; `texts` must outlive them.
std::vector<Text> view_texts(const py::tuple& texts) {
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
std::vector<size_t> split_evenly(const std::vector<Text>& texts, size_t shares) {
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
py::array_t<Id> join(std::vector<chimed::IdBuffer<Id>>& parts) {
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

template <typename Id>
py::tuple encode_as(const BpeEncoder& encoder, const py::tuple& texts, size_t threads,
                    int64_t end_id) {
    const std::vector<Text> views = view_texts(texts);
    py::array_t<int32_t> lengths(py::ssize_t(views.size()));
    int32_t* const length = lengths.mutable_data();
    std::vector<chimed::IdBuffer<Id>> ids;
    {
        py::gil_scoped_release unlocked;
        const std::vector<size_t> bounds = split_evenly(views, threads);
        ids.resize(bounds.size() - 1);
        const auto work = [&](size_t share) {
            const size_t first = bounds[share];
            encoder.encode(views.data() + first, int64_t(bounds[share + 1] - first), end_id,
                           ids[share], length + first);
        };
        std::vector<std::future<void>> others;  // their destructors wait for their threads
        for (size_t share = 1; share < ids.size(); ++share) {
            others.push_back(std::async(std::launch::async, work, share));
        }
        work(0);
        for (std::future<void>& other : others) other.get();
    }
    return py::make_tuple(join(ids), lengths);
}

py::tuple encode(const BpeEncoder& encoder, const py::sequence& texts, size_t threads, bool wide,
                 std::optional<uint32_t> end_id) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    // A tuple of our own: another thread may change the list while the GIL is released.
    const py::tuple kept(texts);
    const int64_t end = end_id ? int64_t(*end_id) : -1;
    return wide ? encode_as<int32_t>(encoder, kept, threads, end)
                : encode_as<uint16_t>(encoder, kept, threads, end);
}

std::unique_ptr<BpeEncoder> make_encoder(const py::bytes& model,
                                         const std::map<std::u32string, uint32_t>& added,
                                         int64_t window) {
    if (window < 1) throw std::invalid_argument("window must be at least 1");
    std::vector<chimed::AddedToken> tokens;
    for (const auto& [text, id] : added) tokens.push_back({text, id});
    return std::make_unique<BpeEncoder>(std::string_view(model), std::move(tokens), window);
}

}  // namespace

void bind_bpe(py::module_& module) {
    py::register_exception<chimed::LoneSurrogate>(module, "LoneSurrogate", PyExc_ValueError);
    py::register_exception<chimed::Unsupported>(module, "UnsupportedModel", PyExc_ValueError);
    py::class_<BpeEncoder>(module, "BpeEncoder")
        .def(py::init(&make_encoder), py::arg("model"), py::arg("added_tokens"),
             py::arg("window") = int64_t(1) << 16)
        .def("encode", &encode, py::arg("texts"), py::arg("threads"), py::arg("wide"),
             py::arg("end_id") = py::none());
}
