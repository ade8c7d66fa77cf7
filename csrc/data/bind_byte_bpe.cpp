// The Python bindings of the byte-level encoder; reads tokenizer.json.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
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
using chimed::Text;
using chimed::Unsupported;
using chimed::WordPattern;

constexpr const char* CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d";
constexpr const char* GPT2_REST =
    "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
constexpr uint16_t NO_BYTE = 0xFFFF;

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

// What GPT-2's byte alphabet stands for: U+0000 to U+0143 to a byte, or NO_BYTE.
std::array<uint16_t, 0x144> make_byte_alphabet() {
    std::array<uint16_t, 0x144> bytes;
    bytes.fill(NO_BYTE);
    uint32_t next = 0x100;
    for (uint16_t byte = 0; byte < 256; ++byte) {
        const bool is_shown = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
        bytes[is_shown ? byte : next++] = byte;
    }
    return bytes;
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

// The bytes that a token stands for; empty where a character stands for none.
std::string read_token(const py::handle& token) {
    static const auto alphabet = make_byte_alphabet();
    const py::ssize_t length = PyUnicode_GET_LENGTH(token.ptr());
    std::string bytes;
    for (py::ssize_t i = 0; i < length; ++i) {
        const Py_UCS4 point = PyUnicode_READ_CHAR(token.ptr(), i);
        if (point >= alphabet.size() || alphabet[point] == NO_BYTE) return {};
        bytes.push_back(char(alphabet[point]));
    }
    return bytes;
}

void read_vocab(const py::dict& vocab, ByteBpeModel& model) {
    constexpr size_t MOST = 1 << 20;
    std::vector<bool> is_taken;
    for (const auto& [token, id] : vocab) {
        const size_t number = id.cast<size_t>();
        if (number >= MOST) throw Unsupported("it has ids of over a million");
        if (number >= model.tokens.size()) {
            model.tokens.resize(number + 1);
            is_taken.resize(number + 1);
        }
        if (is_taken[number]) {
            throw Unsupported("two tokens share the id " + std::to_string(number));
        }
        is_taken[number] = true;
        model.tokens[number] = read_token(token);
    }
}

// The two tokens of a merge: a list of two, or one string with a space between.
py::tuple split_merge(const py::handle& merge) {
    const bool is_text = py::isinstance<py::str>(merge);
    const py::tuple pair(is_text ? py::object(merge.attr("split")(" "))
                                 : py::reinterpret_borrow<py::object>(merge));
    if (pair.size() != 2) throw Unsupported("a merge is not of two tokens");
    return pair;
}

void read_merges(const py::dict& vocab, const py::list& merges, ByteBpeModel& model) {
    const auto find = [&vocab](const py::handle& token) {
        PyObject* const id = PyDict_GetItem(vocab.ptr(), token.ptr());
        if (id == nullptr) throw Unsupported("a merge is of tokens outside the vocabulary");
        return py::handle(id).cast<uint32_t>();
    };
    model.merges.reserve(merges.size());
    for (const py::handle merge : merges) {
        const py::tuple pair = split_merge(merge);
        const py::object both = pair[0] + pair[1];
        model.merges.push_back({find(pair[0]), find(pair[1]), find(both)});
    }
}

ByteBpeModel read_model(const py::bytes& tokenizer_json) {
    const py::object root = py::module_::import("orjson").attr("loads")(tokenizer_json);
    const py::object part = entry(root, "model");
    ByteBpeModel model;
    check_options(part);
    model.is_composed = read_is_composed(entry(root, "normalizer"));
    model.pattern = read_pattern(entry(root, "pre_tokenizer"));
    model.has_whole_words = is_true(part, "ignore_merges");
    const py::dict vocab = entry(part, "vocab");
    read_vocab(vocab, model);
    read_merges(vocab, entry(part, "merges"), model);
    const py::object added = entry(root, "added_tokens");
    if (!added.is_none()) {
        for (const py::handle token : added) {
            model.added.push_back(entry(token, "content").cast<std::u32string>());
        }
    }
    return model;
}

std::unique_ptr<ByteBpeEncoder> make_encoder(const py::bytes& tokenizer_json) {
    try {
        return std::make_unique<ByteBpeEncoder>(read_model(tokenizer_json));
    } catch (const py::error_already_set& error) {
        throw Unsupported(std::string("tokenizer.json is not as expected: ") + error.what());
    } catch (const py::cast_error&) {
        throw Unsupported("tokenizer.json holds a value of an unexpected type");
    }
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
    py::class_<ByteBpeEncoder>(module, "ByteBpeEncoder")
        .def(py::init(&make_encoder), py::arg("tokenizer_json"))
        .def("encode", &encode, py::arg("texts"), py::arg("threads"), py::arg("wide"),
             py::arg("end_id") = py::none());
}
