"""Cleans one example after another: normalises, de-identifies, looks for test questions."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable

from megatron_chimed.data.cleaning.config import CleaningConfig
from megatron_chimed.data.cleaning.decontaminate import Decontaminator
from megatron_chimed.data.cleaning.deidentify import deidentify
from megatron_chimed.data.cleaning.duplicates import exact_signature, minhash, near_signature
from megatron_chimed.data.cleaning.normalize import normalize
from megatron_chimed.data.cleaning.report import CleaningReport, add_examples, make_rules
from megatron_chimed.data.formats.example import (
    Conversation,
    Example,
    Ranking,
    Text,
    Turn,
    example_text,
)
from megatron_chimed.data.reading import expand_inputs
from megatron_chimed.files import sha256_file

EMPTY = "removed.empty"  # also for candidates that became equal
CONTAMINATED = "removed.contaminated"
REPORTED = "contaminated"
# Raised when the rules change: a resumed run must clean as it began.
DEIDENTIFY_VERSION = 2
NEAR_VERSION = 2


class Cleaner:
    """Cleans examples one by one and reports what it did.

    Args:
        config: Which rules are on.

    Raises:
        ConfigError: A test file is missing.
        DataError: A test file is malformed.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._config = config
        self._decontaminator = Decontaminator(config) if config.decontaminate else None
        self._reset()

    def clean(self, example: Example) -> tuple[Example | None, Counter[str]]:
        """Cleans an example.

        Returns:
            The example, or None if it was removed; and how often each rule applied.
        """
        counts: Counter[str] = Counter()
        cleaned = _with_texts(example, lambda text: self._clean_text(text, counts))
        if cleaned is None:
            counts[EMPTY] += 1
        elif self._is_contaminated(cleaned, counts):
            cleaned = None
        self._seen += 1
        self._removed += cleaned is None
        self._counts.update(counts)
        return cleaned, counts

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
            found=tuple(sorted(self._found)),
        )
        self._reset()
        return report

    def _reset(self) -> None:
        self._seen = self._removed = 0
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._found: set[int] = set()

    def _clean_text(self, text: str, counts: Counter[str]) -> str:
        for is_on, rules, prefix in (
            (self._config.normalize, normalize, "normalize"),
            (self._config.deidentify, deidentify, "deidentify"),
        ):
            if not is_on:
                continue
            text, changes = rules(text)
            for change in changes:
                rule = f"{prefix}.{change.rule}"
                counts[rule] += change.count
                add_examples(self._examples, rule, [change.example])
        return text

    def _is_contaminated(self, example: Example, counts: Counter[str]) -> bool:
        """Whether to remove the example; one that is kept is reported."""
        if self._decontaminator is None:
            return False
        items = self._decontaminator.find(example_text(example))
        if not items:
            return False
        rule = CONTAMINATED if self._config.remove_contaminated else REPORTED
        counts[rule] += 1
        add_examples(self._examples, rule, [self._decontaminator.item(items[0])])
        if not self._config.remove_contaminated:
            self._found.update(items)
        return self._config.remove_contaminated


def _with_texts(example: Example, clean: Callable[[str], str]) -> Example | None:
    """The example with each text cleaned, or None if nothing to learn is left."""
    if isinstance(example, Text):
        text = clean(example.text)
        return Text(text) if text.strip() else None
    if isinstance(example, Conversation):
        conversation = _cleaned(example, clean)
        texts = [text for turn in conversation.turns for text in (turn.question, turn.answer)]
        return conversation if all(map(str.strip, texts)) else None
    candidates = tuple(map(clean, example.candidates))
    prompt = _cleaned(example.prompt, clean)
    texts = [*candidates, *(turn.question for turn in prompt.turns)]
    if len(set(candidates)) < len(candidates) or not all(map(str.strip, texts)):
        return None
    return Ranking(prompt, candidates, example.ranks, example.margins)


def _cleaned(conversation: Conversation, clean: Callable[[str], str]) -> Conversation:
    turns = tuple(Turn(clean(turn.question), clean(turn.answer)) for turn in conversation.turns)
    return Conversation(turns, clean(conversation.system))


def cleaning_identity(config: CleaningConfig) -> str:
    """Hex SHA-256 of the settings and the content of the test files: equal for equal results."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode("utf-8"))
    for entry in expand_inputs(config.decontaminate) if config.decontaminate else ():
        digest.update(sha256_file(entry.path).encode("ascii"))
    if config.deidentify:
        digest.update(f"deidentify {DEIDENTIFY_VERSION}".encode("ascii"))
    if config.deduplicate == "near":
        digest.update(f"near {NEAR_VERSION}".encode("ascii"))
        digest.update(str(minhash().ALGORITHM_VERSION).encode("ascii"))
    return digest.hexdigest()
