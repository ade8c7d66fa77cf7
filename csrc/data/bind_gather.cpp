// The Python bindings of gather.h and packing.h: types and sizes are checked here, places in the
// files where they are read.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "gather.h"
#include "packing.h"

namespace py = pybind11;

namespace {

// c_style without forcecast: an array of another dtype is refused instead of copied and cut.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

template <typename T>
T* writable(Array<T>& array, int64_t size, const char* name) {
    require(array.ndim() == 1 && array.size() == size,
            std::string(name) + " must be a vector of " + std::to_string(size));
    return array.mutable_data();  // throws for a read-only array
}

chimed::Spans spans_of(const Array<int64_t>& starts, const Array<int64_t>& lengths) {
    require(starts.ndim() == 1 && lengths.ndim() == 1 && starts.size() == lengths.size(),
            "starts and lengths must be vectors of one size");
    return {starts.data(), lengths.data(), starts.size()};
}

// Calls `function` with a vector of the array's own dtype: any integers in this machine's order.
template <typename Function>
void with_elements(const py::array& tokens, Function function) {
    require(tokens.ndim() == 1 && (tokens.flags() & py::array::c_style) != 0,
            "tokens must be a vector");
    const auto call = [&](auto example) {
        using Element = decltype(example);
        if (!py::isinstance<Array<Element>>(tokens)) return false;
        function(chimed::Tokens<Element>{static_cast<const Element*>(tokens.data()),
                                         tokens.size()});
        return true;
    };
    const bool is_known = call(uint16_t{}) || call(int32_t{}) || call(int64_t{}) || call(uint8_t{})
                          || call(int16_t{}) || call(int8_t{});
    if (!is_known) throw py::type_error("tokens must be integers");
}

void gather(const py::array& tokens, const Array<int64_t>& starts, const Array<int64_t>& lengths,
            Array<int64_t> ids) {
    const chimed::Spans spans = spans_of(starts, lengths);
    int64_t* output = writable(ids, ids.size(), "ids");
    const int64_t size = ids.size();
    with_elements(tokens, [&](auto elements) {
        py::gil_scoped_release unlocked;
        chimed::gather(elements, spans, output, size);
    });
}

template <typename T>
T* optional(const py::object& array, int64_t size, const char* name) {
    if (array.is_none()) return nullptr;
    if (!py::isinstance<Array<T>>(array)) throw py::type_error(std::string(name) + ": wrong dtype");
    auto typed = py::reinterpret_borrow<Array<T>>(array);
    return writable(typed, size, name);
}

void mark_documents(const Array<int64_t>& ids, int64_t end_of_document,
                    const py::object& positions, const py::object& loss_mask,
                    const py::object& segments) {
    require(ids.ndim() == 1, "ids must be a vector");
    const int64_t size = ids.size();
    const chimed::Marks marks{optional<int64_t>(positions, size, "positions"),
                              optional<float>(loss_mask, size, "loss_mask"),
                              optional<int32_t>(segments, size, "segments")};
    const int64_t* input = ids.data();
    py::gil_scoped_release unlocked;
    chimed::mark_documents(input, size, end_of_document, marks);
}

py::dict gather_pack(const py::array& tokens, const Array<uint8_t>& targets,
                     const Array<int64_t>& starts, const Array<int64_t>& lengths, int64_t size) {
    require(size > 0, "size must be positive: " + std::to_string(size));
    require(targets.ndim() == 1 && targets.size() == tokens.size(), "one target per token");
    const chimed::Spans spans = spans_of(starts, lengths);
    py::array_t<int64_t> ids(size), labels(size), positions(size);
    py::array_t<float> loss_mask(size);
    py::array_t<int32_t> segments(size);
    const chimed::Pack pack{ids.mutable_data(),       labels.mutable_data(),
                            positions.mutable_data(), loss_mask.mutable_data(),
                            segments.mutable_data(),  size};
    const uint8_t* is_target = targets.data();
    with_elements(tokens, [&](auto elements) {
        py::gil_scoped_release unlocked;
        chimed::gather_pack(elements, is_target, spans, pack);
    });
    py::dict sample;
    sample["tokens"] = ids;
    sample["labels"] = labels;
    sample["position_ids"] = positions;
    sample["loss_mask"] = loss_mask;
    sample["segment_ids"] = segments;
    return sample;
}

py::tuple pack(const Array<int32_t>& lengths, int64_t capacity) {
    require(lengths.ndim() == 1 && lengths.size() < INT32_MAX, "lengths must be a vector");
    require(capacity > 0 && capacity < INT32_MAX,
            "capacity must be positive: " + std::to_string(capacity));
    const int32_t* length = lengths.data();
    const int32_t* end = length + lengths.size();
    const int32_t* wrong =
        std::find_if(length, end, [&](int32_t value) { return value < 0 || value > capacity; });
    if (wrong != end) {
        throw std::invalid_argument("lengths[" + std::to_string(wrong - length) + "] is "
                                    + std::to_string(*wrong) + ", but a pack holds 0 to "
                                    + std::to_string(capacity));
    }
    py::array_t<int32_t> order(lengths.size());
    int32_t* places = order.mutable_data();
    std::vector<int64_t> starts;
    {
        py::gil_scoped_release unlocked;
        starts = chimed::pack(length, int32_t(end - length), int32_t(capacity), places);
    }
    return py::make_tuple(order, py::array_t<int64_t>(int64_t(starts.size()), starts.data()));
}

}  // namespace

void bind_gather(py::module_& module) {
    module.def("gather", &gather, py::arg("tokens"), py::arg("starts"), py::arg("lengths"),
               py::arg("ids").noconvert());
    module.def("mark_documents", &mark_documents, py::arg("ids"), py::arg("end_of_document"),
               py::arg("positions"), py::arg("loss_mask"), py::arg("segments"));
    module.def("gather_pack", &gather_pack, py::arg("tokens"), py::arg("targets"),
               py::arg("starts"), py::arg("lengths"), py::arg("size"));
    module.def("pack", &pack, py::arg("lengths"), py::arg("capacity"));
}
