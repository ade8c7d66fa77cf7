"""Requests as token ids: shots are left out until a prompt fits, long texts become windows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.evaluation.requests import (
    LikelihoodRequest,
    Likelihoods,
    Refused,
    TaskPrompt,
    TextLikelihood,
    TextRequest,
)

TOO_LONG = "longer than the model's positions without any shot"
NO_TEMPLATE = "a conversation, for which the model has no chat template"
EMPTY = "an empty prompt"
EMPTY_TEXT = "an empty text"
OTHER_TOKENIZER = "indexed with another tokenizer than the model's"

EncodeTexts = Callable[[Sequence[str]], list[list[int]]]
"""Ids of texts, without special tokens."""

EncodeConversations = Callable[[Sequence[Conversation]], list[list[int]]]
"""Ids up to where the last answer starts."""


@dataclass(frozen=True, kw_only=True)
class RequestEncoder:
    """How one model's input is encoded."""

    encode_texts: EncodeTexts
    """Of the tokenizer."""
    encode_conversations: EncodeConversations | None
    """With the model's chat template; None: it has none."""
    prefix: tuple[int, ...]
    """Ids before every text, such as the beginning of sequence."""
    max_positions: int
    """Of the model."""
    boundary: int
    """Id before a text whose first token is scored: beginning of sequence, else its end."""
    decode: Callable[[Sequence[int]], str]
    """The text of ids."""
    tokenizer: str
    """Identity of the tokenizer, as indexed data name it; "": unknown."""


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """A prompt that fits."""

    ids: tuple[int, ...]
    num_shots: int


@dataclass(frozen=True, kw_only=True)
class EncodedChoice:
    """A prompt and its continuations that fit."""

    ids: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    num_shots: int


@dataclass(frozen=True, kw_only=True)
class PrefixRun:
    """Items in a row whose prompts begin with the same tokens, such as the same shots."""

    prefix: tuple[int, ...]
    items: dict[int, EncodedChoice]
    """By index among all."""


def runs_with_one_prefix(items: Sequence[EncodedChoice]) -> list[PrefixRun]:
    """Divides prompts so that what many begin with is computed once.

    A run ends where going on would make its prefix shorter by more than half. Every prompt keeps a
    token of its own, which the continuations follow.
    """
    runs: list[PrefixRun] = []
    for index, item in enumerate(items):
        if runs:
            last = runs[-1]
            common = common_prefix(last.prefix, item.ids[:-1])
            if 2 * len(common) >= len(last.prefix) or len(last.items) == 1 and common:
                runs[-1] = PrefixRun(prefix=common, items={**last.items, index: item})
                continue
        runs.append(PrefixRun(prefix=item.ids[:-1], items={index: item}))
    return runs


def common_prefix(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    """What two sequences both begin with."""
    length = min(len(first), len(second))
    same = next((i for i in range(length) if first[i] != second[i]), length)
    return first[:same]


def encode_prompt(
    encoder: RequestEncoder, prompt: TaskPrompt, room: int
) -> EncodedPrompt | Refused:
    """The ids of a prompt with as many shots as fit.

    Args:
        encoder: Of the model.
        prompt: What is asked.
        room: Largest number of tokens.
    """
    if prompt.is_chat and encoder.encode_conversations is None:
        return Refused(reason=NO_TEMPLATE)
    for num_shots in range(len(prompt.shots), -1, -1):
        ids = _encode(encoder, prompt.render(num_shots))
        if not ids:
            return Refused(reason=EMPTY)
        if len(ids) <= room:
            return EncodedPrompt(ids=tuple(ids), num_shots=num_shots)
    return Refused(reason=TOO_LONG)


def encode_choice(encoder: RequestEncoder, request: LikelihoodRequest) -> EncodedChoice | Refused:
    """The ids of a prompt and its continuations with as many shots as fit.

    A text and its continuation are encoded as one and cut behind the ids of the text alone, with
    the spaces at its end moved to the continuation, as lm-evaluation-harness does it
    (`_encode_pair`): so merges over the border score as there. Behind a chat template the
    continuation is encoded alone, as in training.
    """
    prompt = request.prompt
    if prompt.is_chat and encoder.encode_conversations is None:
        return Refused(reason=NO_TEMPLATE)
    for num_shots in range(len(prompt.shots), -1, -1):
        rendered = prompt.render(num_shots)
        if isinstance(rendered, Conversation):
            ids = _encode(encoder, rendered)
            continuations = encoder.encode_texts(request.continuations)
        else:
            ids, continuations = _encode_pairs(encoder, rendered, request.continuations)
        if not ids:
            return Refused(reason=EMPTY)
        if len(ids) + max(map(len, continuations)) <= encoder.max_positions:
            return EncodedChoice(
                ids=tuple(ids), continuations=tuple(map(tuple, continuations)), num_shots=num_shots
            )
    return Refused(reason=TOO_LONG)


Score = Callable[[Sequence[EncodedChoice]], list[tuple[float, ...]]]
"""Log-probabilities of the continuations of each prompt."""


def choice_likelihoods(
    encoder: RequestEncoder, requests: Sequence[LikelihoodRequest], score: Score
) -> list[Likelihoods | Refused]:
    """Answers requests with a model's scores, in order."""
    encoded = [encode_choice(encoder, request) for request in requests]
    fitting = [item for item in encoded if isinstance(item, EncodedChoice)]
    found = iter(score(fitting) if fitting else ())
    return [
        item
        if isinstance(item, Refused)
        else Likelihoods(
            log_probs=next(found),
            num_tokens=tuple(map(len, item.continuations)),
            num_shots=item.num_shots,
        )
        for item in encoded
    ]


def text_likelihoods(
    encoder: RequestEncoder, requests: Sequence[TextRequest], score: Score
) -> list[TextLikelihood | Refused]:
    """Answers requests with a model's scores, in order; each token is scored once."""
    texts = [_text_ids(encoder, request) for request in requests]
    windows = [
        [] if isinstance(ids, Refused) else text_windows(encoder, ids, request)
        for ids, request in zip(texts, requests, strict=True)
    ]
    flat = [window for of_text in windows for window in of_text]
    values = iter(score(flat) if flat else ())
    found: list[TextLikelihood | Refused] = []
    for ids, request, of_text in zip(texts, requests, windows, strict=True):
        if isinstance(ids, Refused):
            found.append(ids)
            continue
        text = encoder.decode(ids) if request.ids else request.prompt.question
        found.append(
            TextLikelihood(
                log_prob=sum(sum(next(values)) for _ in of_text),
                num_tokens=len(ids),
                num_bytes=len(text.encode("utf-8")),
            )
        )
    return found


def text_windows(
    encoder: RequestEncoder, ids: Sequence[int], request: TextRequest
) -> list[EncodedChoice]:
    """The windows of a text: each scores the tokens that none before it did."""
    size = min(request.window or encoder.max_positions, encoder.max_positions)
    stride = min(request.stride or size, size - 1)  # one token of context at least
    whole = [encoder.boundary, *ids]  # the first is context alone
    windows = []
    done, end = 1, min(size, len(whole))
    while done < len(whole):
        start = max(end - size, 0)
        context, scored = whole[start:done], whole[done:end]
        windows.append(
            EncodedChoice(ids=tuple(context), continuations=(tuple(scored),), num_shots=0)
        )
        done, end = end, min(end + stride, len(whole))
    return windows


def _text_ids(encoder: RequestEncoder, request: TextRequest) -> tuple[int, ...] | Refused:
    if request.ids:
        same = request.tokenizer == encoder.tokenizer
        return request.ids if same else Refused(reason=OTHER_TOKENIZER)
    ids = encoder.encode_texts([request.prompt.question])[0]
    return tuple(ids) or Refused(reason=EMPTY_TEXT)


def _encode(encoder: RequestEncoder, rendered: str | Conversation) -> list[int]:
    if isinstance(rendered, Conversation):
        assert encoder.encode_conversations is not None, "checked by the caller"
        return encoder.encode_conversations([rendered])[0]
    return [*encoder.prefix, *encoder.encode_texts([rendered])[0]]


def _encode_pairs(
    encoder: RequestEncoder, text: str, continuations: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    stripped = text.rstrip()
    spaces = text[len(stripped) :]
    context, *whole = encoder.encode_texts(
        [stripped, *(f"{stripped}{spaces}{continuation}" for continuation in continuations)]
    )
    ids = [*encoder.prefix, *context]
    return ids, [each[len(context) :] for each in whole]
