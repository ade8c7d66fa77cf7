"""A few fixed prompts that the model answers at each validation, to be read by a person.

The weights of the running job answer, in place and greedily, so that nothing is drawn from a random
stream: losses and weights are those of a run without samples, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_chimed.data.formats.example import Conversation, Turn
from megatron_chimed.data.templates import Template, encode_prompts
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation import (
    SamplingConfig,
    live_session,
    make_requests,
    read_rows,
    stream_completions,
)
from megatron_chimed.generation.completion import gather_replicas, in_order
from megatron_chimed.generation.prompts import read_prompts
from megatron_chimed.model import Ziya
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.tokenizer import Tokenizer

MOST_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class SamplePrompts:
    """Prompts, encoded as the run's data are."""

    texts: tuple[str, ...]
    """What is shown: the text, or the last question of a conversation."""
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each, up to where its answer begins."""
    are_answers: bool
    """Whether what follows is an answer, a text of its own, or goes on from the prompt's."""
    tokenizer: Tokenizer
    """The run's."""
    max_new_tokens: int
    """Longest answer."""


def open_samples(
    config: LogConfig, tokenizer: Tokenizer, template: Template | None, *, stage: str, room: int
) -> SamplePrompts | None:
    """Reads and encodes the prompts that the configuration names; None if it names none.

    Args:
        config: Names the file.
        tokenizer: The run's.
        template: What the run's checkpoints store; pretraining goes on from plain text instead.
        stage: The run's.
        room: Positions that the model has.

    Raises:
        ConfigError: The file is missing or has too many prompts, one is too long, or the stage
            writes no text.
        DataError: A row is malformed.
    """
    path = config.sample_prompts
    if path is None:
        return None
    if stage == "reward":
        raise ConfigError(
            "logging.sample_prompts is set, but a reward model writes no text. Leave it out."
        )
    if not Path(path).is_file():
        raise ConfigError(f"logging.sample_prompts: {path} is no file. Check the path.")
    if stage == "pretrain":
        texts = _lines(path) or [row.asked for row in read_rows(path, is_chat=False)]
        bos = [tokenizer.bos_id] if tokenizer.special.add_bos else []
        encoded = [[*bos, *tokenizer.encode(text)] for text in texts]
    else:
        assert template is not None, f"stage {stage} without a template"
        conversations = [Conversation((Turn(text, ""),)) for text in _lines(path)] or [
            prompt.conversation for prompt in read_prompts([path])
        ]
        texts = [conversation.turns[-1].question for conversation in conversations]
        encoded = encode_prompts(tokenizer, template, conversations)
    _check(path, encoded, room - config.sample_tokens)
    return SamplePrompts(
        texts=tuple(texts),
        ids=tuple(map(tuple, encoded)),
        are_answers=stage != "pretrain",
        tokenizer=tokenizer,
        max_new_tokens=config.sample_tokens,
    )


def answer_samples(
    prompts: SamplePrompts, chunks: Sequence[Ziya], ranks: Ranks
) -> list[dict[str, str]]:
    """The answers of the weights as they are; every rank calls it and gets them.

    Args:
        prompts: What is asked.
        chunks: The job's on this rank, their weights synchronized.
        ranks: This rank's place.

    Returns:
        `prompt`, `answer` and `finish_reason` (`stop`: it came to an end; `length`: it was cut).
    """
    eos = prompts.tokenizer.eos_id
    sampling = SamplingConfig(max_new_tokens=prompts.max_new_tokens, stop_token_ids=(eos,))
    with live_session(chunks, ranks, tokenizer=prompts.tokenizer) as session:
        requests = make_requests(prompts.ids, starts_text=prompts.are_answers)
        found = stream_completions(session, requests, sampling)
        completions = in_order(gather_replicas(session, list(found)))
    return [
        {"prompt": text, "answer": found.text, "finish_reason": found.finish_reason}
        for text, found in zip(prompts.texts, completions, strict=True)
    ]


def _lines(path: str) -> list[str]:
    """The prompts of a `.txt`; empty for other files.

    Raises:
        ConfigError: It holds none, or is no UTF-8.
    """
    if Path(path).suffix != ".txt":
        return []
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"logging.sample_prompts: {path} is no UTF-8 ({error}).") from None
    if not (found := [line for line in lines if line]):
        raise ConfigError(f"logging.sample_prompts: {path} holds no prompt. Write one on a line.")
    return found


def _check(path: str, encoded: Sequence[Sequence[int]], room: int) -> None:
    if len(encoded) > MOST_PROMPTS:
        raise ConfigError(
            f"logging.sample_prompts: {path} holds {len(encoded)} prompts, which each validation "
            f"would wait for. Keep {MOST_PROMPTS} or fewer."
        )
    for number, ids in enumerate(encoded, start=1):
        if not 1 <= len(ids) <= room:
            raise ConfigError(
                f"logging.sample_prompts: prompt {number} of {path} has {len(ids)} tokens; with "
                f"logging.sample_tokens at most {room} fit the model's positions, and one is the "
                "least. Shorten it, or lower logging.sample_tokens."
            )
