// sentencepiece's normalisation of text, which precedes the search for pieces.
#pragma once

#include <string>
#include <vector>

#include "sentencepiece_model.h"
#include "trie.h"

namespace chimed {

class Normalizer {
public:
    // `symbols` are left alone by the rules; it must outlive this. Throws Unsupported.
    Normalizer(const NormalizerSpec& spec, const Trie& symbols);

    // Which ends of a text a part of it holds.
    struct Ends {
        bool has_first;
        bool has_last;
    };

    // Appends the normalised form of a text, or of a part of one that was cut where
    // `SentencePieceEncoder::may_cut` allows it. END follows the text.
    void append(const char32_t* begin, const char32_t* end, Ends ends,
                std::vector<char32_t>& out) const;

    // What the rules replace.
    const std::vector<std::u32string>& keys() const { return rules_.keys; }

private:
    struct Rules {
        std::vector<std::u32string> keys;
        std::vector<std::u32string> replacements;
    };
    struct Unit {
        std::u32string_view text;
        int length;  // of the code points that it stands for
    };

    static Rules read_rules(const std::string& charsmap);
    static Trie make_trie(const Rules& rules);

    bool has_prefix(Ends ends) const {
        return spec_.add_dummy_prefix && !spec_.whitespace_is_suffix && ends.has_first;
    }
    bool has_suffix(Ends ends) const {
        return spec_.add_dummy_prefix && spec_.whitespace_is_suffix && ends.has_last;
    }

    void append_plain(const char32_t* begin, const char32_t* end, Ends ends,
                      std::vector<char32_t>& out) const;
    void append_by_rules(const char32_t* begin, const char32_t* end, Ends ends,
                         std::vector<char32_t>& out) const;
    Unit next_unit(const char32_t* text) const;

    NormalizerSpec spec_;
    char32_t space_;
    Rules rules_;
    Trie trie_;
    const Trie& symbols_;
};

}  // namespace chimed
