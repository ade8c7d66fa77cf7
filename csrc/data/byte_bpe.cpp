#include "byte_bpe.h"

#include <algorithm>
#include <utility>

namespace chimed {
namespace {

constexpr int64_t MAX_LENGTH = (1 << 29) - 1;  // of a text: a code point is up to 4 ids
constexpr size_t MAX_POINT_BYTES = 4;

template <typename Point>
uint8_t find_classes(const Point* text, int64_t length, const PointClasses& classes) {
    uint8_t found = 0;
    for (int64_t i = 0; i < length; ++i) found |= classes[text[i]];
    return found;
}

uint8_t find_classes(const Text& text, const PointClasses& classes) {
    switch (text.width) {
        case 1: return 0;  // Latin-1 has no class that is asked for
        case 2: return find_classes(static_cast<const uint16_t*>(text.data), text.length, classes);
        default: return find_classes(static_cast<const uint32_t*>(text.data), text.length, classes);
    }
}

// Writes a code point of two or more bytes in UTF-8; returns the end.
uint8_t* write_point(uint32_t point, uint8_t* to) {
    if (point < 0x800) {
        *to++ = uint8_t(0xC0 | point >> 6);
    } else {
        if (point < 0x10000) {
            *to++ = uint8_t(0xE0 | point >> 12);
        } else {
            *to++ = uint8_t(0xF0 | point >> 18);
            *to++ = uint8_t(0x80 | (point >> 12 & 0x3F));
        }
        *to++ = uint8_t(0x80 | (point >> 6 & 0x3F));
    }
    *to++ = uint8_t(0x80 | (point & 0x3F));
    return to;
}

}  // namespace

// Ids of parts of words, with a thread's memory.
class ByteBpeEncoder::Words {
public:
    explicit Words(const ByteBpeEncoder& encoder)
        : encoder_(encoder), merger_(encoder.merges_), cache_(encoder.take_cache()) {}

    ~Words() { encoder_.return_cache(std::move(cache_)); }

    struct Ids {
        const uint32_t* data;
        size_t count;
    };

    // Of bytes that SLACK more follow; valid until the next call.
    Ids encode(const uint8_t* text, size_t size, bool is_whole) {
        is_whole = is_whole && encoder_.has_whole_words_;
        if (size > WordCache::MAX_BYTES) return merge(text, size, is_whole);
        const WordCache::Key key = WordCache::make_key(text, size, is_whole);
        if (const WordCache::Entry* const entry = cache_->find(key)) {
            return {entry->ids(), entry->count()};
        }
        const Ids ids = merge(text, size, is_whole);
        if (ids.count <= WordCache::MAX_IDS) cache_->insert(key, ids.data, ids.count);
        return ids;
    }

    // Without the cache.
    Ids merge(const uint8_t* text, size_t size, bool is_whole) {
        ids_.clear();
        if (is_whole) {
            const std::string_view word(reinterpret_cast<const char*>(text), size);
            const uint32_t token = encoder_.vocabulary_->tokens().find(word);
            if (token != ByteVocabulary::NONE) {
                ids_.push_back(token);
                return {ids_.data(), 1};
            }
        }
        parts_.clear();
        for (size_t i = 0; i < size; ++i) {
            parts_.push_back({encoder_.byte_symbols_[text[i]], uint32_t(i)});
        }
        merger_.merge(parts_);
        for (const MergePart& part : parts_) ids_.push_back(part.symbol);
        return {ids_.data(), ids_.size()};
    }

private:
    const ByteBpeEncoder& encoder_;
    Merger<MergeList> merger_;
    std::unique_ptr<WordCache> cache_;
    std::vector<MergePart> parts_;
    std::vector<uint32_t> ids_;
};

// One thread's work: its memory, and where the ids go.
template <typename Id>
class ByteBpeEncoder::Run {
public:
    Run(const ByteBpeEncoder& encoder, IdBuffer<Id>& ids)
        : encoder_(encoder), words_(encoder), buffer_(ids), size_(ids.size) {}

    ~Run() { buffer_.size = size_; }

    size_t size() const { return size_; }

    void encode(const Text& text) {
        switch (text.width) {
            case 1: return encode_points(static_cast<const uint8_t*>(text.data), text.length);
            case 2: return encode_points(static_cast<const uint16_t*>(text.data), text.length);
            default: return encode_points(static_cast<const uint32_t*>(text.data), text.length);
        }
    }

    void put(uint32_t id) {
        make_room(1);
        ids_[size_++] = Id(id);
    }

private:
    void make_room(size_t count) {
        buffer_.reserve(size_ + count);
        ids_ = buffer_.data();
    }

    template <typename Point>
    void encode_points(const Point* place, int64_t length) {
        for (const Point* const end = place + length; place < end;) {
            const Point* const word_end = encoder_.pretokenizer_.word_end(place, end);
            encode_word(place, word_end);
            place = word_end;
        }
    }

    // Cuts a word into parts while it becomes UTF-8.
    template <typename Point>
    void encode_word(const Point* begin, const Point* end) {
        const size_t most = size_t(end - begin) * MAX_POINT_BYTES;
        if (bytes_.size() < most + WordCache::SLACK) bytes_.resize(most + WordCache::SLACK);
        uint8_t* part = bytes_.data();
        uint8_t* to = part;
        uint32_t previous = 0;
        for (const Point* place = begin; place < end; ++place) {
            const uint32_t point = *place;
            uint8_t* const start = to;
            if (point < 0x80) {
                *to++ = uint8_t(point);
            } else {
                to = write_point(point, to);
            }
            if ((point | previous) >= 0x80 && place != begin) {
                const uint32_t second = point < 0x80 ? 0 : start[1];
                const uint32_t two_bytes = uint32_t(start[0]) << 8 | second;
                if (!encoder_.boundaries_.may_hold(previous, start[-1], point, two_bytes)) {
                    append(part, start, false);
                    part = start;
                }
            }
            previous = point;
        }
        append(part, to, part == bytes_.data());
    }

    void append(const uint8_t* text, const uint8_t* end, bool is_whole) {
        const Words::Ids ids = words_.encode(text, size_t(end - text), is_whole);
        make_room(ids.count);
        Id* const to = ids_ + size_;
        for (size_t i = 0; i < ids.count; ++i) to[i] = Id(ids.data[i]);
        size_ += ids.count;
    }

    const ByteBpeEncoder& encoder_;
    Words words_;
    std::vector<uint8_t> bytes_;
    IdBuffer<Id>& buffer_;
    Id* ids_ = nullptr;  // of the buffer
    size_t size_;
};

ByteBpeEncoder::ByteBpeEncoder(ByteBpeModel model)
    : vocabulary_(std::move(model.vocabulary)),
      has_whole_words_(model.has_whole_words),
      is_composed_(model.is_composed),
      pretokenizer_(model.pattern),
      merges_(vocabulary_->merges()) {
    const ByteStrings& tokens = vocabulary_->tokens();
    for (uint32_t id = 0; id < tokens.size(); ++id) boundaries_.add_all(tokens[id]);
    find_byte_symbols();
    if (has_whole_words_) check_added(model);
}

void ByteBpeEncoder::find_byte_symbols() {
    for (int byte = 0; byte < 256; ++byte) {
        const char text = char(byte);
        const uint32_t id = vocabulary_->tokens().find({&text, 1});
        if (id == ByteVocabulary::NONE) throw Unsupported("not every byte is a token");
        byte_symbols_.push_back(id);
    }
}

// The library would give the id of an added token to text that is a word.
void ByteBpeEncoder::check_added(const ByteBpeModel& model) const {
    Words words(*this);
    for (const std::u32string& content : model.added) {
        std::string bytes;
        for (const char32_t point : content) {
            uint8_t encoded[MAX_POINT_BYTES] = {uint8_t(point)};
            const uint8_t* const end = point < 0x80 ? encoded + 1 : write_point(point, encoded);
            bytes.append(static_cast<const uint8_t*>(encoded), end);
        }
        const uint32_t id = vocabulary_->tokens().find(bytes);
        if (id == ByteVocabulary::NONE) continue;
        const auto* const text = reinterpret_cast<const uint8_t*>(bytes.data());
        const Words::Ids ids = words.merge(text, bytes.size(), false);
        if (ids.count == 1 && ids.data[0] == id) continue;
        const char32_t* const end = content.data() + content.size();
        if (pretokenizer_.word_end(content.data(), end) == end) {
            throw Unsupported("text that is a word gives the added token " + bytes);
        }
    }
}

std::unique_ptr<WordCache> ByteBpeEncoder::take_cache() const {
    {
        const std::lock_guard<std::mutex> locked(mutex_);
        if (!caches_.empty()) {
            std::unique_ptr<WordCache> cache = std::move(caches_.back());
            caches_.pop_back();
            return cache;
        }
    }
    return std::make_unique<WordCache>();
}

void ByteBpeEncoder::return_cache(std::unique_ptr<WordCache> cache) const {
    const std::lock_guard<std::mutex> locked(mutex_);
    caches_.push_back(std::move(cache));
}

template <typename Id>
void ByteBpeEncoder::encode(const Text* texts, int64_t first, int64_t count, int64_t end_id,
                            const Compose& compose, IdBuffer<Id>& ids, int32_t* lengths) const {
    Run<Id> run(*this, ids);
    for (int64_t i = first; i < first + count; ++i) {
        const Text& text = texts[i];
        if (text.length > MAX_LENGTH) throw std::length_error("a text of over 2^29 characters");
        const uint8_t classes = find_classes(text, pretokenizer_.classes());
        if (classes & SURROGATE) throw LoneSurrogate("a text holds a lone surrogate");
        const size_t before = run.size();
        if (is_composed_ && (classes & COMPOSING)) {
            const std::u32string composed = compose(i);
            run.encode({composed.data(), int64_t(composed.size()), 4});
        } else {
            run.encode(text);
        }
        if (end_id >= 0 && run.size() > before) run.put(uint32_t(end_id));
        lengths[i] = int32_t(run.size() - before);
    }
}

template void ByteBpeEncoder::encode(const Text*, int64_t, int64_t, int64_t, const Compose&,
                                     IdBuffer<uint16_t>&, int32_t*) const;
template void ByteBpeEncoder::encode(const Text*, int64_t, int64_t, int64_t, const Compose&,
                                     IdBuffer<int32_t>&, int32_t*) const;

}  // namespace chimed
