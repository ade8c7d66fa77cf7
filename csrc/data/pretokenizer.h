// Cuts text into the words within which byte-level BPE merges, as three regular expressions do.
//
// Written out by hand: at each place one look at one or two code points decides which alternative
// matches, and the alternatives leave no code point over. tests/unit/tokenizer/test_byte_encoder.py
// compares the words with those of the library's own engine.
#pragma once

#include <cstdint>

#include "point_classes.h"

namespace chimed {

// Which expression; a vocabulary's tokenizer.json spells it out, see `find_word_pattern`.
enum class WordPattern {
    gpt2,      // as OpenAI's r50k: numbers of any length
    qwen2,     // as cl100k, but each digit is a word
    cl100k,    // Llama 3's: numbers of up to 3 digits
};

class Pretokenizer {
public:
    explicit Pretokenizer(WordPattern pattern) : pattern_(pattern) {}

    const PointClasses& classes() const { return classes_; }

    // The end of the word that begins at `begin`, which is before `end`.
    template <typename Point>
    const Point* word_end(const Point* begin, const Point* end) const {
        return pattern_ == WordPattern::gpt2 ? gpt2_end(begin, end) : cl100k_end(begin, end);
    }

private:
    // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
    // |\s*[\r\n]+|\s+(?!\S)|\s+
    template <typename Point>
    const Point* cl100k_end(const Point* begin, const Point* end) const {
        const uint8_t first = classes_[*begin];
        if (first & LETTER) return skip(begin + 1, end, LETTER);
        if (first & NUMBER) {
            const int64_t most = pattern_ == WordPattern::qwen2 ? 1 : 3;
            return skip(begin + 1, end - begin > most ? begin + most : end, NUMBER);
        }
        const Point* const next = begin + 1;
        const uint8_t second = next < end ? classes_[*next] : uint8_t(SPACE);
        if (*begin == '\'' && next < end) {
            if (const int length = contraction<true>(next, end)) return next + length;
        }
        if ((second & LETTER) && !(first & NEWLINE)) return skip(next + 1, end, LETTER);
        if (!(first & SPACE)) return skip(skip_other(next, end), end, NEWLINE);
        if (*begin == ' ' && !(second & KNOWN)) return skip(skip_other(next, end), end, NEWLINE);
        const Point* const behind = skip(begin, end, SPACE);
        for (const Point* last = behind; last > begin; --last) {
            if (classes_[last[-1]] & NEWLINE) return last;
        }
        return spaces_end(begin, behind, end);
    }

    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    template <typename Point>
    const Point* gpt2_end(const Point* begin, const Point* end) const {
        const Point* next = begin + 1;
        if (*begin == '\'' && next < end) {
            if (const int length = contraction<false>(next, end)) return next + length;
        }
        uint8_t kind = classes_[*begin];
        if (*begin == ' ' && next < end && !(classes_[*next] & SPACE)) kind = classes_[*next++];
        if (kind & LETTER) return skip(next, end, LETTER);
        if (kind & NUMBER) return skip(next, end, NUMBER);
        if (!(kind & SPACE)) return skip_other(next, end);
        return spaces_end(begin, skip(begin, end, SPACE), end);
    }

    static constexpr uint8_t KNOWN = LETTER | NUMBER | SPACE;

    // \s+(?!\S)|\s+ on the spaces up to `behind`: the last one is left to a word behind them.
    template <typename Point>
    static const Point* spaces_end(const Point* begin, const Point* behind, const Point* end) {
        return behind == end || behind - begin == 1 ? behind : behind - 1;
    }

    template <typename Point>
    const Point* skip(const Point* place, const Point* end, uint8_t bits) const {
        while (place < end && (classes_[*place] & bits)) ++place;
        return place;
    }

    template <typename Point>
    const Point* skip_other(const Point* place, const Point* end) const {
        while (place < end && !(classes_[*place] & KNOWN)) ++place;
        return place;
    }

    // Length of the letters after an apostrophe, or 0. The long s folds to s.
    template <bool any_case, typename Point>
    static int contraction(const Point* place, const Point* end) {
        const auto fold = [](uint32_t point) {
            if (any_case && point >= 'A' && point <= 'Z') return point + 32;
            return any_case && point == 0x17F ? uint32_t('s') : point;
        };
        const uint32_t first = fold(*place);
        if (first == 's' || first == 't' || first == 'm' || first == 'd') return 1;
        const uint32_t second = end - place > 1 ? fold(place[1]) : 0;
        const bool is_two = ((first == 'r' || first == 'v') && second == 'e')
                            || (first == 'l' && second == 'l');
        return is_two ? 2 : 0;
    }

    WordPattern pattern_;
    PointClasses classes_;
};

}  // namespace chimed
