"""Talking with a model: each turn with what was said before it, in its chat template."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.complete import gather_replicas, stream_completions
from megatron_chimed.generation.framing import Framing
from megatron_chimed.generation.requests import Completion, Request
from megatron_chimed.generation.session import Session
from megatron_chimed.generation.terminal import Terminal, deaf_to_interrupts

LEAVE = ("/exit", "/quit", "exit", "quit")
RESET = ("/reset", "reset", "clear")
HELP = "/reset starts anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer and keeps the talk."


@dataclass(kw_only=True)
class History:
    """What was said since the last reset."""

    framing: Framing
    turns: list[Turn] = field(default_factory=list)
    """Of a conversation."""
    text: str = ""
    """Where there is no template: all of it."""

    def ask(self, line: str) -> Conversation | str:
        """What the model is given for the next line."""
        if self.framing.template is None:
            return self.text + line
        return Conversation((*self.turns, Turn(line, "")))

    def add(self, line: str, answer: str) -> None:
        """Keeps a turn; a question that got no answer is no turn that a model has seen."""
        if self.framing.template is None:
            self.text += f"{line}{answer}\n"
        elif answer.strip():
            self.turns.append(Turn(line, answer))

    def clear(self) -> None:
        """Forgets everything."""
        self.turns.clear()
        self.text = ""


def say(
    session: Session,
    framing: Framing,
    sampling: SamplingConfig,
    asked: Conversation | str,
    *,
    is_stopped: Callable[[], bool] | None = None,
) -> Completion | None:
    """Answers, or completes a text; rank 0 prints it while it comes.

    Args:
        session: The model.
        framing: Of the model.
        sampling: How to draw and where to end.
        asked: As of `Framing.encode`.
        is_stopped: As of `stream_completions`.

    Returns:
        The completion, on every rank; None where it was stopped before it began.

    Raises:
        ChimedError: As of `stream_completions`.
    """
    [ids] = framing.encode([asked])
    starts_text = framing.template is not None

    def listener(number: int, text: str, finish_reason: str | None) -> None:
        print(text, end="", flush=True)

    speaks = session.ranks.rank == 0
    found = stream_completions(
        session,
        [Request(prompt=tuple(ids), prompt_id=0, starts_text=starts_text)],
        sampling,
        listener=listener if speaks else None,
        is_stopped=is_stopped,
    )
    completions = gather_replicas(session, list(found))
    if speaks:
        print(flush=True)
    return completions[0] if completions else None


def talk(session: Session, framing: Framing, sampling: SamplingConfig, *, hint: str) -> None:
    """Reads lines on rank 0 until the end; each is answered with what was said before it.

    Args:
        session: The model, one copy of it.
        framing: Of the model.
        sampling: How to draw and where to end.
        hint: Names the model and how it is spoken to, for the start.

    Raises:
        ConfigError: The ranks make several copies of the model.
    """
    layout, agreement = session.ranks.layout, session.ranks.agreement
    if layout.data_parallel_size > 1:
        raise ConfigError(
            f"--interactive is one talk, but {agreement.size} ranks at {layout.describe()} hold "
            f"the model {layout.data_parallel_size} times. Start {agreement.size} / "
            f"{layout.data_parallel_size} ranks, or raise --parallel.tensor_parallel_size."
        )
    history = History(framing=framing)
    speaks = agreement.rank == 0
    _tell(speaks, f"{hint}. {HELP}")
    with Terminal() if speaks else deaf_to_interrupts() as terminal:
        while True:
            line = agreement.on_rank_0(lambda: terminal.read() if terminal else None)
            if line is None or line.strip() in LEAVE:
                return
            if line.strip() in RESET:
                history.clear()
                _tell(speaks, "a new conversation")
            elif line.strip():
                _answer(session, sampling, history, line, terminal)


def _answer(
    session: Session,
    sampling: SamplingConfig,
    history: History,
    line: str,
    terminal: Terminal | None,
) -> None:
    """One turn; every rank stops at the same token, when rank 0 is asked to."""
    agreement = session.ranks.agreement
    with terminal.answering() if terminal else contextlib.nullcontext():
        try:
            completion = say(
                session,
                history.framing,
                sampling,
                history.ask(line),
                is_stopped=lambda: agreement.broadcast_flag(
                    bool(terminal and terminal.is_stopped())
                ),
            )
        except DataError as error:  # the same on every rank, and no reason to end the talk
            _tell(agreement.rank == 0, f"{error} /reset forgets what was said.")
            return
    if completion is None or completion.finish_reason == "interrupted":
        _tell(agreement.rank == 0, "(stopped)")
    history.add(line, completion.text if completion else "")


def _tell(speaks: bool, text: str) -> None:
    if speaks:
        print(text, file=sys.stderr, flush=True)
