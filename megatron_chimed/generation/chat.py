"""Interactive chat: each turn is answered with the conversation so far, in the chat template."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.errors import ConfigError, DataError
from megatron_chimed.generation.completion import gather_replicas, stream_completions
from megatron_chimed.generation.prompt_encoder import PromptEncoder
from megatron_chimed.generation.requests import Completion, Request
from megatron_chimed.generation.session import Session
from megatron_chimed.generation.terminal import Terminal, ignore_interrupts

LEAVE = ("/exit", "/quit", "exit", "quit")
RESET = ("/reset", "reset", "clear")
HELP = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops an answer and keeps the chat."


@dataclass(kw_only=True)
class History:
    """The conversation since the last reset."""

    encoder: PromptEncoder
    turns: list[Turn] = field(default_factory=list)
    """With a template: the turns so far."""
    text: str = ""
    """Without a template: the text so far."""

    def ask(self, line: str) -> Conversation | str:
        """The model's input for the next line."""
        if self.encoder.template is None:
            return self.text + line
        return Conversation((*self.turns, Turn(line, "")))

    def add(self, line: str, answer: str) -> None:
        """Adds a turn; an unanswered question is dropped: models never see one in training."""
        if self.encoder.template is None:
            self.text += f"{line}{answer}\n"
        elif answer.strip():
            self.turns.append(Turn(line, answer))

    def clear(self) -> None:
        """Starts a new conversation."""
        self.turns.clear()
        self.text = ""


def stream_answer(
    session: Session,
    encoder: PromptEncoder,
    sampling: SamplingConfig,
    asked: Conversation | str,
    *,
    should_stop: Callable[[], bool] | None = None,
) -> Completion | None:
    """Answers a conversation or completes a text; rank 0 prints the tokens as they are drawn.

    Args:
        session: The model.
        encoder: Encodes for the model.
        sampling: How to draw and where to end.
        asked: As of `PromptEncoder.encode`.
        should_stop: As of `stream_completions`.

    Returns:
        The completion, on every rank; None if it was stopped before its first token.

    Raises:
        ChimedError: As of `stream_completions`.
        ConfigError: The ranks were given another prompt or sampling.
    """
    [ids] = encoder.encode([asked])
    settings = {f"sampling.{name}": value for name, value in asdict(sampling).items()}
    session.ranks.agreement.require_same({"prompt": list(ids)} | settings)
    starts_text = encoder.template is not None

    def on_token(number: int, text: str, finish_reason: str | None) -> None:
        print(text, end="", flush=True)

    is_rank_0 = session.ranks.rank == 0
    found = stream_completions(
        session,
        [Request(prompt=tuple(ids), prompt_id=0, starts_text=starts_text)],
        sampling,
        on_token=on_token if is_rank_0 else None,
        should_stop=should_stop,
    )
    completions = gather_replicas(session, list(found))
    if is_rank_0:
        print(flush=True)
    return completions[0] if completions else None


def run_chat(
    session: Session, encoder: PromptEncoder, sampling: SamplingConfig, *, hint: str
) -> None:
    """Reads lines on rank 0 until the end and answers each in its conversation.

    Args:
        session: The model, without data parallelism.
        encoder: Encodes for the model.
        sampling: How to draw and where to end.
        hint: Names the model and its template; printed first.

    Raises:
        ConfigError: The layout has several replicas of the model.
    """
    layout, agreement = session.ranks.layout, session.ranks.agreement
    if layout.data_parallel_size > 1:
        raise ConfigError(
            f"--interactive is one conversation, but {agreement.size} ranks at {layout.describe()} "
            f"hold the model {layout.data_parallel_size} times. Start {agreement.size} / "
            f"{layout.data_parallel_size} ranks, or raise --parallel.tensor_parallel_size."
        )
    history = History(encoder=encoder)
    is_rank_0 = agreement.rank == 0
    _print_status(is_rank_0, f"{hint}. {HELP}")
    with Terminal() if is_rank_0 else ignore_interrupts() as terminal:
        while True:
            line = agreement.on_rank_0(lambda: terminal.read() if terminal else None)
            if line is None or line.strip() in LEAVE:
                return
            if line.strip() in RESET:
                history.clear()
                _print_status(is_rank_0, "a new conversation")
            elif line.strip():
                _answer(session, sampling, history, line, terminal)


def _answer(
    session: Session,
    sampling: SamplingConfig,
    history: History,
    line: str,
    terminal: Terminal | None,
) -> None:
    """Runs one turn; all ranks stop at the same token when rank 0 is interrupted."""
    agreement = session.ranks.agreement
    with terminal.answering() if terminal else contextlib.nullcontext():
        try:
            completion = stream_answer(
                session,
                history.encoder,
                sampling,
                history.ask(line),
                should_stop=lambda: agreement.broadcast_flag(
                    bool(terminal and terminal.is_stopped())
                ),
            )
        except DataError as error:  # the same on every rank, and the chat can continue
            _print_status(agreement.rank == 0, f"{error} /reset clears the conversation.")
            return
    if completion is None or completion.finish_reason == "interrupted":
        _print_status(agreement.rank == 0, "(stopped)")
    history.add(line, (completion and completion.text) or "")


def _print_status(is_rank_0: bool, text: str) -> None:
    if is_rank_0:
        print(text, file=sys.stderr, flush=True)
