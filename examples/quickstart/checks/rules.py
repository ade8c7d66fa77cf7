"""Judges answers by rules and the facts of the corpus, independently of the reward model.

A rising reward shows that the policy satisfies its reward model, not that its answers are better.
That takes a judge that was not used in training: here, a dictionary of all items of all diseases.
It tells whether an answer lists the kind of item that was asked for, not whether the item belongs
to the disease: a model of this size cannot know a disease that it has never read about.
"""

import collections
import re

from examples.quickstart.corpus.facts import load_diseases
from examples.quickstart.dialogues import FIELDS, SEPARATOR, items_of, load_wording

# Factor for an answer that lacks the wording or the end of the answers in the corpus.
MALFORMED = 0.5


class RuleChecker:
    """Scores answers by a dictionary of the corpus's items."""

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
        """How well an answer fits a question, from 0 to 1.

        Args:
            answer: The text.
            field: What the question asks for, one of dialogues.FIELDS.

        Returns:
            The share of the listed characters that are items of that field, each item counting
            once; times MALFORMED if the answer lacks the usual wording or end.
        """
        answer = answer.strip()
        match = self._answer.fullmatch(answer)
        listed = match[match.lastindex] if match else answer
        right = {item for item in self._items.findall(listed) if field in self._fields[item]}
        characters = len(listed.replace(SEPARATOR, ""))
        share = sum(map(len, right)) / characters if characters else 0.0
        return share if match else MALFORMED * share
