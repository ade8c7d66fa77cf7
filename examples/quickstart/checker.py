"""Judges answers by rules and the facts of the corpus, which no reward model has seen.

A reward that rises says that the policy pleases its judge, not that its answers are better. That
must be asked of something that took no part in training: here, a dictionary of all items of all
diseases. It tells whether an answer lists the kind of thing that was asked for, not whether that
belongs to the disease: a model of this size cannot know a disease that it has never read of.
"""

import collections
import re

from examples.quickstart.corpus.facts import load_diseases
from examples.quickstart.dialogues import FIELDS, SEPARATOR, items_of, load_wording

# Factor for an answer that is not worded, or does not end, as answers do.
MALFORMED = 0.5


class Checker:
    """Scores answers by rules; holds the dictionary."""

    def __init__(self) -> None:
        self._fields: dict[str, set[str]] = collections.defaultdict(set)
        for disease in load_diseases():
            for field in FIELDS:
                for item in items_of(disease, field):
                    self._fields[item].add(field)
        longest_first = sorted(self._fields, key=len, reverse=True)
        self._items = re.compile("|".join(map(re.escape, longest_first)))
        answers = [re.escape(answer) for answer in load_wording().answers]
        self._answer = re.compile("|".join(answers).replace(re.escape("{items}"), "(.+)"))

    def score(self, answer: str, field: str) -> float:
        """How well an answer fits a question.

        Args:
            answer: The text.
            field: What the question asks for, one of dialogues.FIELDS.

        Returns:
            The share of what the answer lists, in characters, that is an item of that field, each
            item counting once; times MALFORMED where the answer is not worded like one, or does
            not end. From 0 to 1.
        """
        answer = answer.strip()
        match = self._answer.fullmatch(answer)
        listed = match[match.lastindex] if match else answer
        right = {item for item in self._items.findall(listed) if field in self._fields[item]}
        characters = len(listed.replace(SEPARATOR, ""))
        share = sum(map(len, right)) / characters if characters else 0.0
        return share if match else MALFORMED * share
