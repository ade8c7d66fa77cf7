#include "normalizer.h"

#include <cstring>
#include <utility>

namespace chimed {
namespace {

// The compiled rules: uint32 size of the trie in bytes, the trie, then the replacements, each ended
// by a zero. The trie is a double array as darts-clone lays it out, keyed by the bytes of UTF-8; a
// key's value is the place of its replacement.
class RuleReader {
public:
    RuleReader(const std::string& charsmap, std::vector<std::u32string>& keys,
               std::vector<std::u32string>& replacements)
        : keys_(keys), replacements_(replacements) {
        uint32_t size = 0;
        if (charsmap.size() > sizeof(size)) std::memcpy(&size, charsmap.data(), sizeof(size));
        if (size % 4 != 0 || sizeof(size) + size > charsmap.size() || size == 0) refuse();
        units_.resize(size / 4);
        std::memcpy(units_.data(), charsmap.data() + sizeof(size), size);
        text_ = std::string_view(charsmap).substr(sizeof(size) + size);
        link_children();
        visit(offset(unit(0)));
    }

private:
    // sentencepiece takes at most 32 keys that are prefixes of one another; no key is that long.
    static constexpr size_t MAX_KEY_BYTES = 32;
    static constexpr size_t MAX_VISITS = 1 << 20;

    [[noreturn]] static void refuse() { throw Unsupported("its normalisation rules are damaged"); }

    static uint32_t offset(uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); }

    uint32_t unit(size_t place) const {
        if (place >= units_.size()) refuse();
        return units_[place];
    }

    // Lists the children of each node: a child lies at the node's place xor its own byte.
    void link_children() {
        first_child_.assign(units_.size(), 0);
        next_child_.assign(units_.size(), 0);
        for (uint32_t child = 1; child < units_.size(); ++child) {
            const uint32_t byte = units_[child] & (1u << 31 | 0xFF);
            if (byte == 0 || byte > 0xFF || (child ^ byte) >= units_.size()) continue;
            next_child_[child] = std::exchange(first_child_[child ^ byte], child);
        }
    }

    void visit(size_t node) {
        // Keys may share suffixes, so a node can be reached many times.
        if (key_.size() > MAX_KEY_BYTES || ++visits_ > MAX_VISITS) refuse();
        if (node >= units_.size()) return;
        for (uint32_t child = first_child_[node]; child != 0; child = next_child_[child]) {
            const size_t next = child ^ offset(units_[child]);
            key_.push_back(char(units_[child] & 0xFF));
            if (units_[child] >> 8 & 1) add(unit(next) & 0x7FFFFFFF);
            visit(next);
            key_.pop_back();
        }
    }

    void add(uint32_t place) {
        const size_t end = text_.find('\0', place);
        if (place > text_.size() || end == text_.npos) refuse();
        keys_.push_back(decode_utf8(key_, "a normalisation rule"));
        replacements_.push_back(
            decode_utf8(text_.substr(place, end - place), "a normalisation rule"));
    }

    std::vector<uint32_t> units_;
    std::vector<uint32_t> first_child_;  // by node; 0: none
    std::vector<uint32_t> next_child_;   // by child
    std::string_view text_;
    std::string key_;
    size_t visits_ = 0;
    std::vector<std::u32string>& keys_;
    std::vector<std::u32string>& replacements_;
};

}  // namespace

Normalizer::Normalizer(const NormalizerSpec& spec, const Trie& symbols)
    : spec_(spec),
      space_(spec.escape_whitespaces ? U'\u2581' : U' '),
      rules_(read_rules(spec.charsmap)),
      trie_(make_trie(rules_)),
      symbols_(symbols) {}

Normalizer::Rules Normalizer::read_rules(const std::string& charsmap) {
    Rules rules;
    if (!charsmap.empty()) RuleReader(charsmap, rules.keys, rules.replacements);
    return rules;
}

Trie Normalizer::make_trie(const Rules& rules) {
    std::vector<Trie::Key> keys;
    for (const std::u32string& key : rules.keys) keys.emplace_back(key, uint32_t(keys.size()));
    return Trie(std::move(keys));
}

void Normalizer::append(const char32_t* begin, const char32_t* end, Ends ends,
                        std::vector<char32_t>& out) const {
    if (begin == end) return;
    if (spec_.remove_extra_whitespaces || !trie_.is_empty()) {
        append_by_rules(begin, end, ends, out);
    } else {
        append_plain(begin, end, ends, out);
    }
}

void Normalizer::append_plain(const char32_t* begin, const char32_t* end, Ends ends,
                              std::vector<char32_t>& out) const {
    if (has_prefix(ends)) out.push_back(space_);
    const size_t old_size = out.size();
    out.resize(old_size + (end - begin));
    char32_t* target = out.data() + old_size;
    const char32_t space = space_;
    for (const char32_t* text = begin; text < end; ++text) {
        *target++ = *text == U' ' ? space : *text;
    }
    if (has_suffix(ends)) out.push_back(space_);
}

// Whitespace is removed as in sentencepiece: at the start a unit that is one space, even before the
// dummy prefix; after a space, the spaces that begin a unit; last of all, those at the end, the
// text's own U+2581 among them.
void Normalizer::append_by_rules(const char32_t* begin, const char32_t* end, Ends ends,
                                 std::vector<char32_t>& out) const {
    const bool removes = spec_.remove_extra_whitespaces;
    const char32_t* text = begin;
    while (removes && ends.has_first && text < end) {
        const Unit unit = next_unit(text);
        if (unit.text != U" ") break;
        text += unit.length;
    }
    if (text == end) return;
    const size_t start = out.size();
    if (has_prefix(ends)) out.push_back(space_);
    bool is_behind_space = removes && ends.has_first;
    while (text < end) {
        const Unit unit = next_unit(text);
        text += unit.length;
        std::u32string_view rest = unit.text;
        while (is_behind_space && !rest.empty() && rest[0] == U' ') rest.remove_prefix(1);
        if (rest.empty()) continue;
        for (const char32_t point : rest) out.push_back(point == U' ' ? space_ : point);
        is_behind_space = removes && rest.back() == U' ';
    }
    while (removes && out.size() > start && out.back() == space_) out.pop_back();
    if (has_suffix(ends)) out.push_back(space_);
}

Normalizer::Unit Normalizer::next_unit(const char32_t* text) const {
    if (symbols_.may_start(*text)) {
        const Trie::Match symbol = symbols_.longest(text);
        if (symbol.length) return {{text, size_t(symbol.length)}, symbol.length};
    }
    const Trie::Match rule = trie_.longest(text);
    if (rule.length) return {rules_.replacements[rule.value], rule.length};
    return {{text, 1}, 1};
}

}  // namespace chimed
