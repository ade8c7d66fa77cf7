// The Python bindings of the dataset helpers: arguments are checked here, so that no loop has to.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "helpers.h"

namespace py = pybind11;

void bind_sentencepiece(py::module_& module);
void bind_byte_bpe(py::module_& module);
void bind_gather(py::module_& module);
void bind_scan(py::module_& module);

namespace {

// c_style without forcecast: an array of another dtype is refused instead of copied and cut.
template <typename T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& message) {
    if (!holds) throw std::invalid_argument(message);
}

template <typename Index>
py::array permutation(int64_t size, const chimed::ShuffleKey& key) {
    py::array_t<Index> order(size);
    Index* data = order.mutable_data();
    {
        py::gil_scoped_release unlocked;
        chimed::permutation(key, size, data);
    }
    return order;
}

py::array permutation_of_fitting_type(int64_t size, uint64_t seed, uint64_t epoch,
                                      uint64_t stream) {
    require(size >= 0, "size is negative: " + std::to_string(size));
    const chimed::ShuffleKey key{seed, epoch, stream};
    const bool is_small = size <= int64_t(INT32_MAX);
    return is_small ? permutation<int32_t>(size, key) : permutation<int64_t>(size, key);
}

template <typename Index>
void check_order(const int32_t* lengths, int64_t count, const Index* order, int64_t documents) {
    for (int64_t i = 0; i < documents; ++i) {
        const int64_t document = order[i];
        // `if` and not require(), which would build its message for every document.
        if (document < 0 || document >= count) {
            throw std::invalid_argument("order[" + std::to_string(i) + "] is "
                                        + std::to_string(document) + ", but there are "
                                        + std::to_string(count) + " documents");
        }
        if (lengths[document] < 0) {
            throw std::invalid_argument("document " + std::to_string(document)
                                        + " has a negative length");
        }
    }
}

template <typename Index>
py::array_t<int64_t> sample_index(const Array<int32_t>& lengths, const Array<Index>& order,
                                  int64_t seq_length, int64_t samples) {
    require(lengths.ndim() == 1 && order.ndim() == 1, "lengths and order must be vectors");
    require(seq_length > 0, "seq_length must be positive: " + std::to_string(seq_length));
    require(samples >= 0, "samples is negative: " + std::to_string(samples));
    py::array_t<int64_t> rows({samples + 1, int64_t(2)});
    const int32_t* length = lengths.data();
    const Index* document = order.data();
    int64_t* row = rows.mutable_data();
    const int64_t documents = order.size();
    bool is_enough = false;
    {
        py::gil_scoped_release unlocked;
        check_order(length, lengths.size(), document, documents);
        is_enough = chimed::sample_index(length, document, documents, seq_length, samples, row);
    }
    require(is_enough, "the documents hold fewer than " + std::to_string(samples) + " samples of "
                           + std::to_string(seq_length) + " + 1 tokens");
    return rows;
}

py::tuple blend_chunk(const Array<double>& weights, Array<int64_t> counts, int64_t size) {
    require(weights.ndim() == 1 && weights.size() > 0, "weights must be a vector, not empty");
    require(counts.ndim() == 1 && counts.size() == weights.size(), "one count per weight");
    require(size >= 0, "size is negative: " + std::to_string(size));
    py::array_t<int32_t> dataset_of(size);
    py::array_t<int64_t> sample_of(size);
    py::array_t<int64_t> advanced(counts.size());
    std::copy(counts.data(), counts.data() + counts.size(), advanced.mutable_data());
    const double* weight = weights.data();
    int64_t* count = advanced.mutable_data();
    int32_t* dataset = dataset_of.mutable_data();
    int64_t* sample = sample_of.mutable_data();
    const int64_t datasets = weights.size();
    {
        py::gil_scoped_release unlocked;
        chimed::blend_chunk(weight, datasets, size, count, dataset, sample);
    }
    return py::make_tuple(dataset_of, sample_of, advanced);
}

}  // namespace

PYBIND11_MODULE(_data_helpers, module) {
    module.doc() = "C++ loops of megatron_chimed.data; called through megatron_chimed.data.datasets.native.";
    module.def("permutation", &permutation_of_fitting_type, py::arg("size"), py::arg("seed"),
               py::arg("epoch"), py::arg("stream"));
    module.def("sample_index", &sample_index<int32_t>, py::arg("lengths"), py::arg("order"),
               py::arg("seq_length"), py::arg("samples"));
    module.def("sample_index", &sample_index<int64_t>, py::arg("lengths"), py::arg("order"),
               py::arg("seq_length"), py::arg("samples"));
    module.def("blend_chunk", &blend_chunk, py::arg("weights"), py::arg("counts"),
               py::arg("size"));
    bind_sentencepiece(module);
    bind_byte_bpe(module);
    bind_gather(module);
    bind_scan(module);
}
