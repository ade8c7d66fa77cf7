// Byte-level byte pair encoding, as Qwen's and Llama 3's tokenizer.json define it: the ids of the
// `tokenizers` library, many times as fast.
//
// A regular expression cuts the text into words. Within a word no merge crosses a boundary that no
// token holds, so the parts between such boundaries are encoded one by one. Most parts were seen
// before, and their ids are in a cache; a clause of Han, which is one word, is made of parts that
// repeat as the words of other languages do.
//
// Special tokens are never recognised: text is text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "boundaries.h"
#include "sentencepiece_model.h"
#include "byte_vocabulary.h"
#include "id_buffer.h"
#include "merges.h"
#include "pretokenizer.h"
#include "text.h"
#include "word_cache.h"

namespace chimed {

struct ByteBpeModel {
    std::shared_ptr<const ByteVocabulary> vocabulary;
    bool has_whole_words = false;  // `ignore_merges`: a word that is a token needs no merges
    bool is_composed = false;      // NFC comes first
    WordPattern pattern = WordPattern::cl100k;
    std::vector<std::u32string> added;  // contents of the added tokens
};

class ByteBpeEncoder {
public:
    // The NFC form of the text of that number; called for texts that may not be in it.
    using Compose = std::function<std::u32string(int64_t)>;

    // Throws Unsupported where the library's ids cannot be guaranteed.
    explicit ByteBpeEncoder(ByteBpeModel model);
    ByteBpeEncoder(const ByteBpeEncoder&) = delete;

    // As `SentencePieceEncoder::encode`; the numbers of the texts begin at `first`.
    template <typename Id>
    void encode(const Text* texts, int64_t first, int64_t count, int64_t end_id,
                const Compose& compose, IdBuffer<Id>& ids, int32_t* lengths) const;

private:
    class Words;
    template <typename Id>
    class Run;

    void find_byte_symbols();
    void check_added(const ByteBpeModel& model) const;
    std::unique_ptr<WordCache> take_cache() const;
    void return_cache(std::unique_ptr<WordCache> cache) const;

    std::shared_ptr<const ByteVocabulary> vocabulary_;
    bool has_whole_words_;
    bool is_composed_;
    Pretokenizer pretokenizer_;
    MergeList merges_;
    Boundaries boundaries_;
    std::vector<Symbol> byte_symbols_;  // by byte
    // A thread takes a cache and returns it, so that small calls find it warm.
    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<WordCache>> caches_;
};

}  // namespace chimed
