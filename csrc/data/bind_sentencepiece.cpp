// The Python bindings of the encoder for sentencepiece's models.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind_texts.h"
#include "sentencepiece.h"

namespace py = pybind11;

namespace {

using chimed::SentencePieceEncoder;
using chimed::Text;

py::tuple encode(const SentencePieceEncoder& encoder, const py::sequence& texts, size_t threads,
                 bool wide, std::optional<uint32_t> end_id) {
    const int64_t end = end_id ? int64_t(*end_id) : -1;
    const auto work = [&encoder, end](const Text* all, int64_t first, int64_t count, auto& ids,
                                      int32_t* lengths) {
        encoder.encode(all + first, count, end, ids, lengths + first);
    };
    return chimed::encode_texts(texts, threads, wide, [&work](const py::tuple&) { return work; });
}

std::unique_ptr<SentencePieceEncoder> make_encoder(const py::bytes& model,
                                                   const std::map<std::u32string, uint32_t>& added,
                                                   int64_t window) {
    if (window < 1) throw std::invalid_argument("window must be at least 1");
    std::vector<chimed::AddedToken> tokens;
    for (const auto& [text, id] : added) tokens.push_back({text, id});
    return std::make_unique<SentencePieceEncoder>(std::string_view(model), std::move(tokens),
                                                  window);
}

}  // namespace

void bind_sentencepiece(py::module_& module) {
    py::register_exception<chimed::LoneSurrogate>(module, "LoneSurrogate", PyExc_ValueError);
    py::register_exception<chimed::Unsupported>(module, "UnsupportedModel", PyExc_ValueError);
    py::class_<SentencePieceEncoder>(module, "SentencePieceEncoder")
        .def(py::init(&make_encoder), py::arg("model"), py::arg("added_tokens"),
             py::arg("window") = int64_t(1) << 16)
        .def_property_readonly("kind", [](const SentencePieceEncoder& self) {
            return self.is_unigram() ? "unigram model" : "byte pair encoding";
        })
        .def("encode", &encode, py::arg("texts"), py::arg("threads"), py::arg("wide"),
             py::arg("end_id") = py::none());
}
