"""Cleans examples: normalises and de-identifies each, searches all for test questions."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.decontaminate import Decontaminator
from megatron_chimed.data.cleaning.duplicates import exact_signature, minhash, near_signature
from megatron_chimed.data.cleaning.exam_items import exam_files
from megatron_chimed.data.cleaning.normalize import TextChange, normalize
from megatron_chimed.data.cleaning.report import (
    CleaningReport,
    FoundItem,
    add_examples,
    make_rules,
    merge_found,
)
from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Text,
    UnpairedAnswer,
    example_text,
    map_texts,
)
from megatron_chimed.data.reading.encodings import UTF8
from megatron_chimed.files import sha256_file

EMPTY = "removed.empty"  # also for candidates that became equal
TextRules = Callable[[str], tuple[str, list[TextChange]]]
CONTAMINATED = "removed.contaminated"
REPORTED = "contaminated"
SEARCH = "passages"  # changed when equal settings would find other test questions
# Raised when the rules change: a resumed run must clean as it began.
DEIDENTIFY_VERSION = 2
NEAR_VERSION = 2


class Cleaner:
    """Cleans examples and reports what it did.

    Args:
        config: Which rules are on.

    Raises:
        ConfigError: A test file is missing.
        DataError: A test file is malformed.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._config = config
        self._decontaminator = Decontaminator(config) if config.decontaminate else None
        self._rules = _rules_of(config)
        self._reset()

    def clean(self, example: Example) -> tuple[Example | None, Counter[str]]:
        """Cleans an example.

        Returns:
            The example, or None if it was removed; and how often each rule applied.
        """
        return self.clean_all([example])[0]

    def clean_all(self, examples: Sequence[Example]) -> list[tuple[Example | None, Counter[str]]]:
        """Cleans examples; searching many for test questions at once takes half the time."""
        results = [self._clean(example) for example in examples]
        if self._decontaminator is not None:
            self._screen(results, self._decontaminator)
        for cleaned, counts in results:
            self._seen += 1
            self._removed += cleaned is None
            self._counts.update(counts)
        return results

    def signature(self, example: Example) -> bytes | None:
        """What `Deduplicator` compares for a cleaned example; None: nothing to compare."""
        if self._config.deduplicate == "off":
            return None
        if self._config.deduplicate == "exact":
            return exact_signature(repr(example))  # roles and ranks count too
        return near_signature(example_text(example), self._config.near_threshold)

    def drain(self) -> CleaningReport:
        """The report since the last call, to be merged in the order of the data."""
        report = CleaningReport(
            seen=self._seen,
            removed=self._removed,
            rules=make_rules(self._counts, self._examples),
            found=merge_found(self._found),
        )
        self._reset()
        return report

    def _reset(self) -> None:
        self._seen = self._removed = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._found: list[FoundItem] = []

    def _clean(self, example: Example) -> tuple[Example | None, Counter[str]]:
        counts: Counter[str] = Counter()
        cleaned = _with_texts(example, lambda text: self._clean_text(text, counts))
        if cleaned is None:
            counts[EMPTY] += 1
        return cleaned, counts

    def _screen(
        self, results: list[tuple[Example | None, Counter[str]]], decontaminator: Decontaminator
    ) -> None:
        """Removes the examples that hold a test question, or only reports them."""
        is_removed = self._config.remove_contaminated
        rule = CONTAMINATED if is_removed else REPORTED
        texts = ["" if cleaned is None else example_text(cleaned) for cleaned, _ in results]
        for place, items in enumerate(decontaminator.find_all(texts)):
            if not items:
                continue
            cleaned, counts = results[place]
            counts[rule] += 1
            results[place] = None if is_removed else cleaned, counts
            add_examples(self._examples, rule, [decontaminator.item(min(items))])
            self._found += [
                FoundItem(item=item, score=score, kept=int(not is_removed), removed=int(is_removed))
                for item, score in items.items()
            ]

    def _clean_text(self, text: str, counts: Counter[str]) -> str:
        for prefix, rules in self._rules:
            text, changes = rules(text)
            for change in changes:
                rule = f"{prefix}.{change.rule}"
                counts[rule] += change.count
                add_examples(self._examples, rule, [change.example])
        return text


def _rules_of(config: CleaningConfig) -> list[tuple[str, TextRules]]:
    """What changes texts, in order, each with its name."""
    rules: list[tuple[str, TextRules]] = []
    if config.normalize:
        rules.append(("normalize", normalize))
    if config.deidentify:
        from megatron_chimed.data.cleaning.deidentify import deidentify  # compiling it takes 0.5 s

        rules.append(("deidentify", deidentify))
    return rules


def _with_texts(example: Example, clean: Callable[[str], str]) -> Example | None:
    """The example with each text cleaned, or None if nothing to learn is left."""
    if isinstance(example, Text):
        text = clean(example.text)
        return Text(text) if text.strip() else None
    if isinstance(example, UnpairedAnswer):
        conversation = _with_texts(example.conversation, clean)
        if not isinstance(conversation, Conversation):
            return None
        return UnpairedAnswer(conversation, example.is_good)
    if isinstance(example, Conversation):
        conversation = map_texts(example, clean)
        texts = [text for turn in conversation.turns for text in (turn.question, turn.answer)]
        return conversation if all(map(str.strip, texts)) else None
    candidates = tuple(map(clean, example.candidates))
    prompt = map_texts(example.prompt, clean)
    texts = [*candidates, *(turn.question for turn in prompt.turns)]
    if len(set(candidates)) < len(candidates) or not all(map(str.strip, texts)):
        return None
    reasonings = tuple(text and clean(text) for text in example.reasonings)
    return dataclasses.replace(example, prompt=prompt, candidates=candidates, reasonings=reasonings)


def cleaning_identity(config: CleaningConfig) -> str:
    """Hex SHA-256 of the settings and the content of the test files: equal for equal results."""
    settings = dataclasses.asdict(config)
    if not config.decontaminate or config.encoding == UTF8:  # as before there was this setting
        del settings["encoding"]
    if not config.decontaminate:  # so that stopped runs of 0.1.0 without test files resume
        settings |= {"ngram_size": 13, "ngram_overlap": 0.8}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8"))
    if config.decontaminate:
        digest.update(SEARCH.encode("ascii"))
    for entry in exam_files(config.decontaminate, config.encoding):
        digest.update(sha256_file(entry.path).encode("ascii"))
    if config.deidentify:
        digest.update(f"deidentify {DEIDENTIFY_VERSION}".encode("ascii"))
    if config.deduplicate == "near":
        digest.update(f"near {NEAR_VERSION}".encode("ascii"))
        digest.update(str(minhash().ALGORITHM_VERSION).encode("ascii"))
    return digest.hexdigest()
