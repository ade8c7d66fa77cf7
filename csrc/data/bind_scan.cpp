#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "csv_scan.h"
#include "json_scan.h"
#include "json_text.h"

namespace py = pybind11;

namespace {

std::string_view view(const py::bytes& data) {
    char* start = nullptr;
    Py_ssize_t size = 0;
    if (PyBytes_AsStringAndSize(data.ptr(), &start, &size) != 0) throw py::error_already_set();
    return {start, static_cast<size_t>(size)};
}

std::string_view view(const py::buffer_info& bytes) {
    return {static_cast<const char*>(bytes.ptr), static_cast<size_t>(bytes.size)};
}

chimed::JsonLayout layout_of(const std::string& name) {
    if (name == "values") return chimed::JsonLayout::kValues;
    if (name == "array") return chimed::JsonLayout::kArray;
    if (name == "keyed") return chimed::JsonLayout::kKeyed;
    throw std::invalid_argument("no such JSON layout: " + name);
}

// int64 [rows, 4]: begin, end, line, key of the rows that end in the piece.
py::array_t<int64_t> feed(chimed::JsonRows& scanner, const py::bytes& piece) {
    std::vector<chimed::JsonRow> rows;
    const std::string_view data = view(piece);
    {
        py::gil_scoped_release unlocked;
        scanner.feed(data, rows);
    }
    static_assert(sizeof(chimed::JsonRow) == 4 * sizeof(int64_t));
    py::array_t<int64_t> table({static_cast<py::ssize_t>(rows.size()), py::ssize_t(4)});
    if (!rows.empty()) {
        std::memcpy(table.mutable_data(), rows.data(), rows.size() * sizeof(chimed::JsonRow));
    }
    return table;
}

// int64 [records]: the offset after each record that ends in the piece.
py::array_t<int64_t> feed_csv(chimed::CsvRows& scanner, const py::bytes& piece) {
    std::vector<int64_t> ends;
    const std::string_view data = view(piece);
    {
        py::gil_scoped_release unlocked;
        scanner.feed(data, ends);
    }
    return py::array_t<int64_t>(static_cast<py::ssize_t>(ends.size()), ends.data());
}

py::list keys(const chimed::JsonRows& scanner) {
    py::list list;
    for (const std::string& key : scanner.keys()) list.append(py::bytes(key));
    return list;
}

// None, or the reason; `value` must be JSON that a parser has accepted, so the text is UTF-8.
py::object problem(const py::buffer& value) {
    const py::buffer_info bytes = value.request();
    const std::string reason = chimed::json_problem(view(bytes));
    if (reason.empty()) return py::none();
    return py::str(reason);
}

py::object text_of(const chimed::JsonText& text) {
    PyObject* const made = PyUnicode_New(py::ssize_t(text.length), text.largest);
    if (made == nullptr) throw py::error_already_set();
    void* const data = PyUnicode_DATA(made);
    switch (PyUnicode_KIND(made)) {
        case PyUnicode_1BYTE_KIND:
            chimed::write_text(text.written, static_cast<uint8_t*>(data));
            break;
        case PyUnicode_2BYTE_KIND:
            chimed::write_text(text.written, static_cast<uint16_t*>(data));
            break;
        default: chimed::write_text(text.written, static_cast<uint32_t*>(data));
    }
    return py::reinterpret_steal<py::object>(made);
}

// The value with a placeholder for each long string, a NUL and a number, and the long strings by
// placeholder.
py::tuple split_long_texts(const py::buffer& value, size_t least) {
    const py::buffer_info bytes = value.request();
    const std::string_view rest = view(bytes);
    std::string short_value;
    py::dict texts;
    size_t done = 0;
    for (const chimed::JsonText& text : chimed::find_long_texts(rest, least)) {
        const std::string number = std::to_string(texts.size());
        const size_t begin = static_cast<size_t>(text.written.data() - rest.data());
        short_value.append(rest, done, begin - done).append("\\u0000").append(number);
        done = begin + text.written.size();
        texts[py::str(std::string(1, '\0') + number)] = text_of(text);
    }
    short_value.append(rest.substr(done));
    return py::make_tuple(py::bytes(short_value), texts);
}

}  // namespace

void bind_scan(py::module_& module) {
    py::class_<chimed::CsvRows>(module, "CsvRows")
        .def(py::init<char>(), py::arg("delimiter"))
        .def("feed", &feed_csv, py::arg("piece"))
        .def_property_readonly("is_quoted", &chimed::CsvRows::is_quoted);
    py::class_<chimed::JsonRows>(module, "JsonRows")
        .def(py::init([](const std::string& layout, bool inside, const py::bytes& key) {
                 return chimed::JsonRows(layout_of(layout), inside, std::string(view(key)));
             }),
             py::arg("layout"), py::arg("inside") = false, py::arg("key") = py::bytes())
        .def("feed", &feed, py::arg("piece"))
        .def("finish", &chimed::JsonRows::finish)
        .def_property_readonly("keys", &keys)
        .def_property_readonly("error", &chimed::JsonRows::error)
        .def_property_readonly("error_offset", &chimed::JsonRows::error_offset)
        .def_property_readonly("error_line", &chimed::JsonRows::error_line);
    module.def("split_long_texts", &split_long_texts, py::arg("value"), py::arg("least"));
    module.def("json_problem", &problem, py::arg("value"));
}
