"""What input formats are parsed into: plain text, a conversation, ranked or judged answers."""

from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Text:
    """A document for pretraining."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    """Name of the tool."""

    arguments: str
    """JSON text."""

    id: str = ""
    """What the result refers to; "" if the source gives none."""


@dataclass(frozen=True, slots=True)
class ToolStep:
    """What the assistant does before its answer: it calls tools and reads their results."""

    calls: tuple[ToolCall, ...]
    """One or more."""

    results: tuple[str, ...] = ()
    """Texts that the tools returned; empty if the row ends with the calls."""

    text: str = ""
    """What the assistant says beside the calls."""

    reasoning: str = ""
    """As `Turn.reasoning`, before the calls."""

    is_learned: bool = True
    """As `Turn.is_learned`, for the calls."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange: what the user says and what the assistant answers."""

    question: str
    answer: str

    is_learned: bool = True
    """Whether a model is trained to give the answer."""

    reasoning: str = ""
    """What the assistant thinks before it answers."""

    steps: tuple[ToolStep, ...] = ()
    """Calls of tools between question and answer."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, after an optional system prompt.

    No question or answer is empty, except that the last answer of `Ranking.prompt` is "", and that
    of a turn that ends with calls of tools.
    """

    turns: tuple[Turn, ...]
    system: str = ""

    tools: str = ""
    """The tools that the assistant may call, as JSON text."""


@dataclass(frozen=True, slots=True)
class UnpairedAnswer:
    """A conversation whose last answer somebody judged: the data of KTO."""

    conversation: Conversation
    is_good: bool


@dataclass(frozen=True, slots=True)
class Ranking:
    """Ranked answers to one prompt; a preference pair is a ranking of two."""

    prompt: Conversation
    """Its last turn's answer is ""."""

    candidates: tuple[str, ...]
    """Two or more, no two of them equal; one in a group made by `as_group`."""

    ranks: tuple[int, ...]
    """One per candidate: 0 is the best, equal ranks are a tie, not all are equal. In a group of
    one, 0 is a good answer and 1 a bad one."""

    margins: tuple[float, ...] | None = None
    """One per candidate where the source gives them, such as its reward."""

    reasonings: tuple[str, ...] = ()
    """As `Turn.reasoning`, before each candidate; () if there is none."""


Example = Text | Conversation | Ranking | UnpairedAnswer


def example_text(example: Example) -> str:
    """All text of an example: system prompt, turns and candidates, joined by newlines."""
    if isinstance(example, Text):
        return example.text
    if isinstance(example, Ranking):
        reasonings = filter(None, example.reasonings)
        return "\n".join((example_text(example.prompt), *reasonings, *example.candidates))
    if isinstance(example, UnpairedAnswer):
        return example_text(example.conversation)
    parts = [example.system, example.tools]
    for turn in example.turns:
        parts.append(turn.question)
        for step in turn.steps:
            parts += [step.reasoning, step.text, *(call.arguments for call in step.calls)]
            parts += step.results
        parts += [turn.reasoning, turn.answer]
    return "\n".join(part for part in parts if part)


def as_group(judged: UnpairedAnswer) -> Ranking:
    """A judged answer as a group of one."""
    *earlier, last = judged.conversation.turns
    prompt = replace(judged.conversation, turns=(*earlier, replace(last, answer="", reasoning="")))
    reasonings = (last.reasoning,) if last.reasoning else ()
    rank = 0 if judged.is_good else 1
    return Ranking(prompt, (last.answer,), (rank,), reasonings=reasonings)


def map_texts(conversation: Conversation, change: Callable[[str], str]) -> Conversation:
    """The conversation with each of its texts changed, all else kept."""
    turns = tuple(_map_turn(turn, change) for turn in conversation.turns)
    tools = conversation.tools and change(conversation.tools)
    return Conversation(turns, change(conversation.system), tools)


def _map_turn(turn: Turn, change: Callable[[str], str]) -> Turn:
    question, answer = change(turn.question), change(turn.answer)
    if not turn.reasoning and not turn.steps:
        return Turn(question, answer, turn.is_learned)
    reasoning = turn.reasoning and change(turn.reasoning)
    steps = tuple(
        replace(
            step,
            calls=tuple(replace(c, arguments=change(c.arguments)) for c in step.calls),
            results=tuple(map(change, step.results)),
            text=step.text and change(step.text),
            reasoning=step.reasoning and change(step.reasoning),
        )
        for step in turn.steps
    )
    return Turn(question, answer, turn.is_learned, reasoning, steps)


def is_plain(conversation: Conversation) -> bool:
    """Whether it is questions and answers alone, all of them learned."""
    return not conversation.tools and all(
        turn.is_learned and not turn.reasoning and not turn.steps for turn in conversation.turns
    )


def has_tools(conversation: Conversation) -> bool:
    """Whether the assistant may call tools, or does."""
    return bool(conversation.tools) or any(turn.steps for turn in conversation.turns)


def has_reasoning(conversation: Conversation) -> bool:
    """Whether the assistant thinks before an answer or a call."""
    return any(
        turn.reasoning or any(step.reasoning for step in turn.steps) for turn in conversation.turns
    )
