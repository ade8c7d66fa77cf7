// The structure of JSON: where rows lie in a stream, and faults that a JSON parser lets through.
//
// Values are not parsed here. The caller parses each row with a real parser; the scanner only has
// to find the same rows as that parser in well-formed input, and to say where the input around them
// stops being well-formed. No recursion, and no memory that grows with the stream.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace chimed {

// How the rows of a stream are laid out.
enum class JsonLayout {
    kValues,  // one object or array after another, white space between
    kArray,   // [row, row, ...]
    kKeyed,   // {"key": [row, ...], "key": [...], ...}
};

struct JsonRow {
    int64_t begin;  // byte in the stream
    int64_t end;
    int64_t line;  // of its first byte, from 0
    int64_t key;   // place in JsonRows::keys, the array the row is in; 0 outside kKeyed
};

// Finds rows in a stream that comes in pieces. After an error it accepts no more input.
class JsonRows {
 public:
    // With `inside`, the stream starts after a row instead of at the layout's start, within the
    // array of `key` (as written, without quotes).
    JsonRows(JsonLayout layout, bool inside, std::string key);

    // Appends the rows that end in this piece.
    void feed(std::string_view piece, std::vector<JsonRow>& rows);

    // To be called at the stream's end: an unfinished layout is an error.
    void finish();

    const std::string& error() const { return error_; }  // empty: none
    int64_t error_offset() const { return error_offset_; }
    int64_t error_line() const { return error_line_; }
    const std::vector<std::string>& keys() const { return keys_; }  // of the last piece's rows

 private:
    enum class State {
        kStart,       // nothing yet, or between rows of kValues
        kFirst,       // after "["
        kRow,         // in an object or array that is a row
        kText,        // in a string that is a row
        kScalar,      // in a number or a word that is a row
        kAfterRow,    // expects "," or "]"
        kNext,        // after "," in an array
        kFirstKey,    // after "{"
        kKey,         // in a key's string
        kColon,       // after a key
        kOpen,        // after ":"
        kAfterArray,  // expects "," or "}"
        kNextKey,     // after "," in the object
        kEnd,         // expects nothing but white space
    };

    const char* step(const char* at, const char* end, std::vector<JsonRow>& rows);
    const char* between(const char* at);
    void in_object(const char* at);
    const char* in_row(const char* at, const char* end, std::vector<JsonRow>& rows);
    const char* in_string(const char* at, const char* end);
    void begin_row(const char* at);
    void end_row(int64_t end, std::vector<JsonRow>& rows);
    bool close(char bracket);
    void fail(const char* at, std::string message);
    void refuse(const char* at, const char* wanted);

    static constexpr size_t kMaxDepth = 4096;  // deeper brackets are counted, not matched
    static constexpr size_t kMaxKey = 4096;    // bytes

    JsonLayout layout_;
    State state_;
    std::vector<std::string> keys_;
    std::string open_;      // brackets open within the row, at most kMaxDepth
    int64_t deeper_ = 0;    // brackets open beyond those
    bool in_text_ = false;  // within a string of the row or in a key
    bool escaped_ = false;  // after a backslash
    JsonRow row_{};
    int64_t offset_ = 0;  // of the piece
    int64_t line_ = 0;    // at the scan's place
    const char* piece_ = nullptr;
    std::string error_;
    int64_t error_offset_ = 0;
    int64_t error_line_ = 0;
};

// What is wrong with a value that a JSON parser has accepted: a key that occurs twice in one
// object (written out or escaped) or an escaped NUL. Returns an empty string if nothing is.
std::string json_problem(std::string_view value);

}  // namespace chimed
