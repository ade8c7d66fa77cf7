// The Python bindings of the byte-level vocabulary and encoder.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "bind_texts.h"
#include "byte_bpe.h"

namespace py = pybind11;

namespace {

using chimed::ByteBpeEncoder;
using chimed::ByteBpeModel;
using chimed::ByteVocabulary;
using chimed::Text;
using chimed::Unsupported;
using chimed::WordPattern;

constexpr const char* CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d";
constexpr const char* GPT2_REST =
    "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// The expression that all of cl100k's kind share but for the length of their numbers.
std::string cl100k_pattern(const char* number) {
    return std::string("(?i:") + CONTRACTIONS + ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" + number
           + "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
}

WordPattern find_word_pattern(const std::string& expression) {
    if (expression == cl100k_pattern("\\p{N}")) return WordPattern::qwen2;
    if (expression == cl100k_pattern("\\p{N}{1,3}")) return WordPattern::cl100k;
    if (expression == std::string(CONTRACTIONS) + GPT2_REST) return WordPattern::gpt2;
    throw Unsupported("the pre-tokenizer's expression is none of Qwen's, Llama 3's and GPT-2's: "
                      + expression);
}

// An entry of a dict, None where it has none.
py::object entry(const py::handle& dict, const char* key) {
    if (!py::isinstance<py::dict>(dict)) throw Unsupported(std::string(key) + " is in no object");
    return dict.attr("get")(key);
}

std::string type_of(const py::handle& part) {
    return part.is_none() ? "none" : std::string(py::str(entry(part, "type")));
}

bool is_true(const py::handle& dict, const char* key) {
    return entry(dict, key).is(py::bool_(true));
}

bool read_is_composed(const py::handle& normalizer) {
    const std::string type = type_of(normalizer);
    if (type != "none" && type != "NFC") {
        throw Unsupported("the normalizer is " + type + ", not NFC");
    }
    return type == "NFC";
}

// The library's own expression for `use_regex` is GPT-2's.
WordPattern read_pattern(const py::handle& part) {
    const std::string type = type_of(part);
    if (type == "ByteLevel") {
        if (is_true(part, "add_prefix_space")) throw Unsupported("a space is put before each text");
        if (!is_true(part, "use_regex")) throw Unsupported("text is not cut into words");
        return WordPattern::gpt2;
    }
    if (type != "Sequence") throw Unsupported("the pre-tokenizer is " + type + ", not byte-level");
    const py::list steps = entry(part, "pretokenizers");
    if (steps.size() != 2 || type_of(steps[0]) != "Split" || type_of(steps[1]) != "ByteLevel") {
        throw Unsupported("the pre-tokenizer is a sequence other than Split and ByteLevel");
    }
    const py::object& split = steps[0];
    const py::object& bytes = steps[1];
    if (std::string(py::str(entry(split, "behavior"))) != "Isolated" || is_true(split, "invert")) {
        throw Unsupported("what the pre-tokenizer's expression matches is not a word");
    }
    if (is_true(bytes, "add_prefix_space") || is_true(bytes, "use_regex")) {
        throw Unsupported("ByteLevel cuts words or adds a space to each");
    }
    const py::object expression = entry(entry(split, "pattern"), "Regex");
    if (expression.is_none()) throw Unsupported("the pre-tokenizer's pattern is no expression");
    return find_word_pattern(py::str(expression));
}

// Options that change ids. `unk_token` and `fuse_unk` do not, since each byte is a token.
void check_options(const py::handle& model) {
    const std::string type = type_of(model);
    if (type != "BPE") throw Unsupported("the model is " + type + ", not BPE");
    const py::object dropout = entry(model, "dropout");
    if (py::bool_(dropout)) throw Unsupported("it has a dropout");
    if (is_true(model, "byte_fallback")) throw Unsupported("it has byte_fallback");
    for (const char* const key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
        if (py::bool_(entry(model, key))) throw Unsupported(std::string("it has a ") + key);
    }
}

ByteBpeModel read_model(std::shared_ptr<const ByteVocabulary> vocabulary, const py::dict& rest) {
    const py::object part = entry(rest, "model");
    ByteBpeModel model;
    model.vocabulary = std::move(vocabulary);
    check_options(part);
    model.is_composed = read_is_composed(entry(rest, "normalizer"));
    model.pattern = read_pattern(entry(rest, "pre_tokenizer"));
    model.has_whole_words = is_true(part, "ignore_merges");
    const py::object added = entry(rest, "added_tokens");
    if (!added.is_none()) {
        for (const py::handle token : added) {
            model.added.push_back(entry(token, "content").cast<std::u32string>());
        }
    }
    return model;
}

std::unique_ptr<ByteBpeEncoder> make_encoder(std::shared_ptr<const ByteVocabulary> vocabulary,
                                             const py::dict& rest) {
    try {
        return std::make_unique<ByteBpeEncoder>(read_model(std::move(vocabulary), rest));
    } catch (const py::error_already_set& error) {
        throw Unsupported(std::string("tokenizer.json is not as expected: ") + error.what());
    } catch (const py::cast_error&) {
        throw Unsupported("tokenizer.json holds a value of an unexpected type");
    }
}

py::object find(const ByteVocabulary& vocabulary, const py::str& spelling) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(spelling.ptr(), &size);
    if (text == nullptr) {  // a lone surrogate, which is in no vocabulary
        PyErr_Clear();
        return py::none();
    }
    const uint32_t id = vocabulary.find({text, size_t(size)});
    return id == ByteVocabulary::NONE ? py::object(py::none()) : py::object(py::int_(id));
}

py::tuple spans(const ByteVocabulary& vocabulary) {
    const ByteVocabulary::Span vocab = vocabulary.vocab_span(), merges = vocabulary.merges_span();
    return py::make_tuple(py::make_tuple(vocab.begin, vocab.end),
                          py::make_tuple(merges.begin, merges.end));
}

py::tuple encode(const ByteBpeEncoder& encoder, const py::sequence& texts, size_t threads,
                 bool wide, std::optional<uint32_t> end_id) {
    const int64_t end = end_id ? int64_t(*end_id) : -1;
    const auto make_work = [&](const py::tuple& kept) {
        // The library's own NFC: its version of Unicode decides.
        const ByteBpeEncoder::Compose compose = [&kept](int64_t number) {
            const py::gil_scoped_acquire locked;
            const py::object nfc = py::module_::import("tokenizers.normalizers").attr("NFC")();
            return nfc.attr("normalize_str")(kept[size_t(number)]).cast<std::u32string>();
        };
        return [&encoder, end, compose](const Text* all, int64_t first, int64_t count, auto& ids,
                                        int32_t* lengths) {
            encoder.encode(all, first, count, end, compose, ids, lengths);
        };
    };
    return chimed::encode_texts(texts, threads, wide, make_work);
}

}  // namespace

void bind_byte_bpe(py::module_& module) {
    py::class_<ByteVocabulary, std::shared_ptr<ByteVocabulary>>(module, "ByteVocabulary")
        .def(py::init([](const py::bytes& file) {
                 return std::make_shared<ByteVocabulary>(std::string_view(file));
             }),
             py::arg("tokenizer_json"))
        .def("find", &find, py::arg("spelling"))
        .def("spelling", &ByteVocabulary::spelling, py::arg("id"))
        .def("listing", [](const ByteVocabulary& self) { return py::bytes(self.listing()); })
        .def_property_readonly("num_entries", &ByteVocabulary::num_entries)
        .def_property_readonly("num_ids", &ByteVocabulary::num_ids)
        .def_property_readonly("unspelled", &ByteVocabulary::unspelled)
        .def_property_readonly("spans", &spans);
    py::class_<ByteBpeEncoder>(module, "ByteBpeEncoder")
        .def(py::init(&make_encoder), py::arg("vocabulary"), py::arg("rest"))
        .def("encode", &encode, py::arg("texts"), py::arg("threads"), py::arg("wide"),
             py::arg("end_id") = py::none());
}
