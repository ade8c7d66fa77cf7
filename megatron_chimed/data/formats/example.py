"""What input formats are parsed into: plain text, a conversation, or ranked answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Text:
    """A document for pretraining."""

    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the user says and what the assistant answers."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, after an optional system prompt.

    No question or answer is empty, except that the last answer of `Ranking.prompt` is "".
    """

    turns: tuple[Turn, ...]
    system: str = ""


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranked answers to one prompt; a preference pair is a ranking of two."""

    prompt: Conversation
    """Its last turn's answer is ""."""

    candidates: tuple[str, ...]
    """Two or more, no two of them equal."""

    ranks: tuple[int, ...]
    """One per candidate: 0 is the best, equal ranks are a tie, not all are equal."""

    margins: tuple[float, ...] | None = None
    """One per candidate where the source gives them, such as its reward."""


Example = Text | Conversation | Ranking


def example_text(example: Example) -> str:
    """All text of an example: system prompt, turns and candidates, joined by newlines."""
    if isinstance(example, Text):
        return example.text
    if isinstance(example, Ranking):
        return "\n".join((example_text(example.prompt), *example.candidates))
    parts = [example.system]
    for turn in example.turns:
        parts += [turn.question, turn.answer]
    return "\n".join(part for part in parts if part)
