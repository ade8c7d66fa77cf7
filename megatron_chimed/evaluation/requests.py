"""What a task asks of a model, and what the model returns; the same for every kind of model."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_chimed.data.formats.example import Conversation, Turn


@dataclass(frozen=True, kw_only=True)
class TaskPrompt:
    """A question after solved examples (shots), as text or as a conversation.

    Earlier shots are left out one by one where a model has too few positions for all.
    """

    question: str
    """In text, with everything up to where the answer starts."""

    head: str = ""
    """Comes once, before the first shot."""

    shots: tuple[tuple[str, str], ...] = ()
    """Questions and answers; in text, an answer includes what precedes the next shot."""

    is_chat: bool = False
    """Whether shots are earlier turns of a conversation, in the model's own template."""

    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the conversation that is asked about; they are never left out."""

    system: str = ""
    """System prompt of a conversation; "": the template's own."""

    def render(self, num_shots: int | None = None) -> str | Conversation:
        """The prompt with the last `num_shots` shots; None: with all."""
        kept = self.shots if num_shots is None else self.shots[len(self.shots) - num_shots :]
        kept = (*kept, *self.history)
        if not self.is_chat:
            return self.head + "".join(q + a for q, a in kept) + self.question
        turns = [Turn(question, answer) for question, answer in (*kept, (self.question, ""))]
        first = Turn(self.head + turns[0].question, turns[0].answer)
        return Conversation((first, *turns[1:]), self.system)


@dataclass(frozen=True, kw_only=True)
class LikelihoodRequest:
    """Asks how likely each of several continuations is."""

    prompt: TaskPrompt
    continuations: tuple[str, ...]
    """In text, with the space between prompt and answer."""


@dataclass(frozen=True, kw_only=True)
class AnswerRequest:
    """Asks for an answer in the model's own words."""

    prompt: TaskPrompt
    max_new_tokens: int
    stop_strings: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Of the draw; without effect at temperature 0."""


@dataclass(frozen=True, kw_only=True)
class DialogueRequest:
    """Asks several questions in turn; the model's own earlier answers stay in the conversation."""

    questions: tuple[AnswerRequest, ...]
    """The prompt of each is its question alone; shots and system prompt are those of the first."""

    @property
    def prompt(self) -> TaskPrompt:
        """Of the first question."""
        return self.questions[0].prompt

    def next_request(self, answers: Sequence[str]) -> AnswerRequest:
        """The question after some answers."""
        first, asked = self.prompt, self.questions[len(answers)]
        given = [each.prompt.question for each in self.questions[: len(answers)]]
        prompt = dataclasses.replace(
            first,
            question=asked.prompt.question,
            history=(*first.history, *zip(given, answers, strict=True)),
        )
        return dataclasses.replace(asked, prompt=prompt)


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Asks how likely a whole text is, read by windows that overlap."""

    prompt: TaskPrompt
    """The text as its question; where there are ids, a description of the text."""
    ids: tuple[int, ...] = ()
    """The text as token ids of the tokenizer below."""
    tokenizer: str = ""
    """Identity of the tokenizer of `ids`."""
    window: int = 0
    """Tokens that the model sees at once; 0: all its positions."""
    stride: int = 0
    """Tokens by which a window moves, so that the others are context; 0: a whole window."""


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """The answer to a `LikelihoodRequest`."""

    log_probs: tuple[float, ...]
    """Natural logarithm of each continuation's probability, summed over its tokens."""
    num_tokens: tuple[int, ...]
    """Tokens of each continuation."""
    num_shots: int
    """Shots that fitted the model's positions."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to an `AnswerRequest`."""

    text: str
    finish_reason: str
    """`stop`, or `length` after `max_new_tokens`."""
    num_tokens: int
    num_shots: int
    """As of `Likelihoods`."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """The answers to a `DialogueRequest`, in order."""

    answers: tuple[Answer, ...]

    @property
    def num_shots(self) -> int:
        """Of the last answer, whose prompt is the longest."""
        return self.answers[-1].num_shots


@dataclass(frozen=True, kw_only=True)
class TextLikelihood:
    """The answer to a `TextRequest`."""

    log_prob: float
    """Natural logarithm, summed over all tokens."""
    num_tokens: int
    """Tokens of the model's own tokenizer that were predicted."""
    num_bytes: int
    """Of the text in UTF-8."""
    num_shots: int = 0
    """A text has none."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A model's answer to a request that it cannot take; the item counts as not evaluated."""

    reason: str
    """For the report, the same words for the same reason."""


class EvaluatedModel(Protocol):
    """A model under evaluation. On shards every rank calls it with the same arguments."""

    @property
    def identity(self) -> dict[str, str]:
        """All that results depend on: weights, tokenizer, template, precision."""
        ...

    @property
    def gives_likelihoods(self) -> bool:
        """Whether `likelihoods` works: endpoints only answer."""
        ...

    def likelihoods(self, requests: list[LikelihoodRequest]) -> list[Likelihoods | Refused]:
        """In order, on every rank."""
        ...

    def answers(self, requests: list[AnswerRequest]) -> list[Answer | Refused]:
        """In order, on every rank."""
        ...

    def text_likelihoods(self, requests: list[TextRequest]) -> list[TextLikelihood | Refused]:
        """In order, on every rank."""
        ...
