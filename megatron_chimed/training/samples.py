"""A few fixed prompts that the model answers at each validation, for people to read.

The weights of the running job answer in place and greedily, so no random number is drawn: losses
and weights are bit-identical to those of a run without samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

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
from megatron_chimed.model import Transformer
from megatron_chimed.observe.logger import LogConfig
from megatron_chimed.tokenizer import Tokenizer

MAX_PROMPTS = 32


@dataclass(frozen=True, kw_only=True)
class SamplePrompts:
    """Prompts, encoded like the run's data."""

    texts: tuple[str, ...]
    """Shown texts: the prompt, or the last question of a conversation."""
    ids: tuple[tuple[int, ...], ...]
    """Token ids of each prompt, up to where its answer begins."""
    are_answers: bool
    """Whether the completion is an answer, a text of its own, or continues the prompt."""
    tokenizer: Tokenizer
    """The run's."""
    max_new_tokens: int
    """Longest answer."""
    stop_ids: tuple[int, ...] = ()
    """Where an answer ends beside the tokenizer's own stops: in the chat template, and where the
    imported model says."""


def open_samples(
    config: LogConfig,
    tokenizer: Tokenizer,
    template: Template | None,
    *,
    stage: str,
    max_positions: int,
    stop_ids: Sequence[int] = (),
) -> SamplePrompts | None:
    """Reads and encodes the prompts of `logging.sample_prompts`, or returns None without any.

    Args:
        config: Names the file.
        tokenizer: The run's.
        template: The run's chat template; pretraining continues plain text instead.
        stage: The training stage.
        max_positions: `max_position_embeddings` of the model.
        stop_ids: Where the model that the run starts from ends, by its generation settings.

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
        raise ConfigError(f"logging.sample_prompts: {path} is not a file. Check the path.")
    if stage == "pretrain":
        texts = _lines(path) or [
            cast(str, row.asked)
            for row in read_rows(path, is_chat=False)  # no conversations
        ]
        bos = [tokenizer.bos_id] if tokenizer.special.add_bos else []
        encoded = [[*bos, *tokenizer.encode(text)] for text in texts]
    else:
        assert template is not None, f"stage {stage} without a template"
        conversations = [Conversation((Turn(text, ""),)) for text in _lines(path)] or [
            prompt.conversation for prompt in read_prompts([path])
        ]
        texts = [conversation.turns[-1].question for conversation in conversations]
        encoded = encode_prompts(tokenizer, template, conversations)
    _check(path, encoded, max_positions - config.sample_tokens)
    own_stops = () if template is None else template.stop_ids(tokenizer)
    return SamplePrompts(
        texts=tuple(texts),
        ids=tuple(map(tuple, encoded)),
        are_answers=stage != "pretrain",
        tokenizer=tokenizer,
        max_new_tokens=config.sample_tokens,
        stop_ids=tuple(dict.fromkeys((*own_stops, *stop_ids))),
    )


def answer_samples(
    prompts: SamplePrompts, chunks: Sequence[Transformer], ranks: Ranks
) -> list[dict[str, str]]:
    """The answers of the current weights; every rank calls it and gets them.

    Args:
        prompts: The prompts.
        chunks: The job's model chunks on this rank, their weights synchronized.
        ranks: This rank's place.

    Returns:
        `prompt`, `answer` and `finish_reason` (`stop`: complete; `length`: cut off).
    """
    stops = dict.fromkeys((*prompts.stop_ids, *prompts.tokenizer.stop_ids))
    sampling = SamplingConfig(max_new_tokens=prompts.max_new_tokens, stop_token_ids=tuple(stops))
    with live_session(chunks, ranks, tokenizer=prompts.tokenizer) as session:
        requests = make_requests(prompts.ids, starts_text=prompts.are_answers)
        found = stream_completions(session, requests, sampling)
        completions = in_order(gather_replicas(session, list(found)))
    return [
        {"prompt": text, "answer": found.text or "", "finish_reason": found.finish_reason}
        for text, found in zip(prompts.texts, completions, strict=True)
    ]


def _lines(path: str) -> list[str]:
    """The prompts of a `.txt`; empty for other files.

    Raises:
        ConfigError: The file has no prompt, or is not UTF-8.
    """
    if Path(path).suffix != ".txt":
        return []
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ConfigError(f"logging.sample_prompts: {path} is not UTF-8 ({error}).") from None
    if not (found := [line for line in lines if line]):
        raise ConfigError(f"logging.sample_prompts: {path} has no prompt. Write one per line.")
    return found


def _check(path: str, encoded: Sequence[Sequence[int]], max_length: int) -> None:
    if len(encoded) > MAX_PROMPTS:
        raise ConfigError(
            f"logging.sample_prompts: {path} has {len(encoded)} prompts, and each validation "
            f"answers all. Keep {MAX_PROMPTS} or fewer."
        )
    for number, ids in enumerate(encoded, start=1):
        if not 1 <= len(ids) <= max_length:
            raise ConfigError(
                f"logging.sample_prompts: prompt {number} of {path} has {len(ids)} tokens; besides "
                f"logging.sample_tokens at most {max_length} fit the model's positions, and at "
                "least 1 is needed. Shorten it, or lower logging.sample_tokens."
            )
