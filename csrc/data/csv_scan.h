// Where the records of a delimiter-separated table end: at line ends outside quotes.
//
// The states are those of Python's csv module (a quote opens a field only at its start, a doubled
// one stands for itself), so that both see the same records.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace chimed {

class CsvRows {
 public:
    explicit CsvRows(char delimiter) : delimiter_(delimiter) {}

    // Appends the ends of the records that end in the stream's next piece: the offset after each.
    void feed(std::string_view piece, std::vector<int64_t>& ends) {
        for (size_t i = 0; i < piece.size(); ++i) {
            const char c = piece[i];
            if (state_ == State::kQuoted) {
                if (c == '"') state_ = State::kQuoteInQuoted;
            } else if (c == '\n') {
                state_ = State::kFieldStart;
                ends.push_back(offset_ + static_cast<int64_t>(i) + 1);
            } else if (c == '"' && state_ != State::kPlain) {
                state_ = State::kQuoted;
            } else {
                state_ = c == delimiter_ ? State::kFieldStart : State::kPlain;
            }
        }
        offset_ += static_cast<int64_t>(piece.size());
    }

    bool is_quoted() const { return state_ == State::kQuoted; }

 private:
    enum class State { kFieldStart, kPlain, kQuoted, kQuoteInQuoted };

    char delimiter_;
    State state_ = State::kFieldStart;
    int64_t offset_ = 0;
};

}  // namespace chimed
