"""Removes texts that are reserved for a template, so that a text cannot open a turn."""

import functools
import re
from dataclasses import dataclass

from megatron_chimed.data.formats.example import Conversation, map_texts


@dataclass(frozen=True)
class TagRemover:
    """Removes tags from texts, and counts them."""

    tags: tuple[str, ...]
    """Literal texts; none may be empty."""

    def clean(self, conversation: Conversation) -> tuple[Conversation, int]:
        """The conversation without tags in its texts, and how many were removed."""
        texts = [conversation.system, conversation.tools]
        for turn in conversation.turns:
            texts += [turn.question, turn.reasoning, turn.answer]
            for step in turn.steps:
                texts += [step.text, step.reasoning, *step.results]
                texts += [call.arguments for call in step.calls]
        everything = "\0".join(texts)
        if not any(tag in everything for tag in self.tags):
            return conversation, 0
        removed = 0

        def clean(text: str) -> str:
            nonlocal removed
            text, found = self.remove(text)
            removed += found
            return text

        return map_texts(conversation, clean), removed

    def remove(self, text: str) -> tuple[str, int]:
        """A text without the tags, repeatedly removed, and how many were removed."""
        removed = 0
        while self.tags:
            text, found = self._pattern.subn("", text)
            if not found:
                break
            removed += found
        return text, removed

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.tags, key=lambda tag: (-len(tag), tag))
        return re.compile("|".join(map(re.escape, longest_first)))
