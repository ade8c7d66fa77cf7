"""A Hugging Face folder under evaluation, run by transformers on one process.

The folder's own tokenizer and chat template encode prompts, by the rules of `encoding`. Code that a
folder brings along is never run, and weights are read from safetensors only.
"""

import inspect
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria

from megatron_chimed.conversion.hf_config import read_json_object
from megatron_chimed.conversion.hf_weights import HfWeights
from megatron_chimed.data.formats.example import Conversation
from megatron_chimed.data.templates import load_template, require_fit
from megatron_chimed.engine import DTYPES
from megatron_chimed.engine.device import local_device
from megatron_chimed.errors import CheckpointError, ChimedError, ConfigError
from megatron_chimed.evaluation.config import EvaluationConfig, ModelEntry
from megatron_chimed.evaluation.models.encoding import (
    EncodeConversations,
    EncodedChoice,
    EncodedPrompt,
    RequestEncoder,
    choice_likelihoods,
    encode_prompt,
    text_likelihoods,
)
from megatron_chimed.evaluation.models.messages import messages_of
from megatron_chimed.evaluation.models.shard_model import conversation_encoder
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    LikelihoodRequest,
    Likelihoods,
    Refused,
    TextLikelihood,
    TextRequest,
)
from megatron_chimed.files import sha256_file
from megatron_chimed.tokenizer import Tokenizer, load_tokenizer

ADAPTER = "adapter_config.json"
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_TAIL_TOKENS = 32  # of an answer, in which a stop string is looked for


class TransformersModel:
    """Answers requests with transformers.

    Args:
        folder: From `check_folder`.
        entry: Template and beginning of sequence.
        config: Batches and precision.

    Raises:
        CheckpointError: transformers cannot load the folder.
        ConfigError: The template does not fit.
    """

    gives_likelihoods = True

    def __init__(self, folder: Path, entry: ModelEntry, config: EvaluationConfig) -> None:
        inference = config.inference
        self._max_batch, self._batch_tokens = inference.max_batch, inference.batch_tokens
        self._device = local_device(0)
        dtype = DTYPES[inference.precision] if inference.precision else "auto"
        self._tokenizer, self._model = _load(folder, dtype)
        self._model.to(self._device)
        known = inspect.signature(self._model.forward).parameters
        self._keeps_logits = "logits_to_keep" in known
        self._takes_positions = "position_ids" in known
        self._encoder, stop_ids = _encoder(folder, entry, self._tokenizer, self._model.config)
        stops = self._model.generation_config.eos_token_id
        self._stop_ids = [*stop_ids, *(stops if isinstance(stops, list) else [stops])]
        self._stop_ids.append(self._tokenizer.eos_token_id)
        self._stop_ids = list(dict.fromkeys(i for i in self._stop_ids if i is not None))
        pad = self._tokenizer.pad_token_id
        self._pad_id = pad if pad is not None else next(iter(self._stop_ids), 0)
        # The folder's own sampling settings would change answers that a task defines.
        self._model.generation_config = GenerationConfig()
        self.identity = {
            "weights": str(folder),
            "template": "folder" if entry.template is None else entry.template,
            "beginning of sequence": "yes" if self._encoder.prefix else "no",
            "precision": str(self._model.dtype).removeprefix("torch."),
        }

    def likelihoods(self, requests: list[LikelihoodRequest]) -> list[Likelihoods | Refused]:
        """As of `EvaluatedModel`."""
        return choice_likelihoods(self._encoder, requests, self._score)

    def text_likelihoods(self, requests: list[TextRequest]) -> list[TextLikelihood | Refused]:
        """As of `EvaluatedModel`."""
        return text_likelihoods(self._encoder, requests, self._score)

    def answers(self, requests: list[AnswerRequest]) -> list[Answer | Refused]:
        """As of `EvaluatedModel`; requests of equal settings are drawn together."""
        answers: dict[int, Answer | Refused] = {}
        groups: dict[tuple, dict[int, EncodedPrompt]] = {}
        for index, request in enumerate(requests):
            room = self._encoder.max_positions - request.max_new_tokens
            encoded = encode_prompt(self._encoder, request.prompt, room)
            if isinstance(encoded, Refused):
                answers[index] = encoded
                continue
            settings = (
                *(request.max_new_tokens, request.stop_strings),
                *(request.temperature, request.top_p, request.seed),
            )
            groups.setdefault(settings, {})[index] = encoded
        for group in groups.values():
            by_length = sorted(group, key=lambda index: -len(group[index].ids))
            for start in range(0, len(by_length), self._max_batch):
                batch = by_length[start : start + self._max_batch]
                drawn = self._draw(requests[batch[0]], [group[index] for index in batch])
                texts = [requests[index].prompt.is_chat for index in batch]
                for index, item, tokens, is_chat in zip(
                    batch, (group[i] for i in batch), drawn, texts, strict=True
                ):
                    answers[index] = self._answer(requests[index], item, tokens, is_chat=is_chat)
        return [answers[index] for index in range(len(requests))]

    @torch.inference_mode()
    def _draw(self, request: AnswerRequest, items: Sequence[EncodedPrompt]) -> list[list[int]]:
        """Drawn tokens, with the stop token if there was one."""
        tokens, mask = self._padded([item.ids for item in items])
        settings: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            settings |= {"temperature": request.temperature, "top_p": request.top_p, "top_k": 0}
        config = GenerationConfig(
            max_new_tokens=request.max_new_tokens,
            eos_token_id=self._stop_ids or None,
            pad_token_id=self._pad_id,
            **settings,
        )
        width = tokens.shape[1]
        criteria = [_Stops(self._tokenizer, request.stop_strings, width)]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # Different prompts get different draws, the same ones the same.
            torch.manual_seed(request.seed + zlib.crc32(repr([i.ids for i in items]).encode()))
            out = self._model.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=criteria if request.stop_strings else None,
            )
        return [row[width:] for row in out.tolist()]

    def _answer(
        self, request: AnswerRequest, item: EncodedPrompt, tokens: list[int], *, is_chat: bool
    ) -> Answer:
        stop = next((n for n, token in enumerate(tokens) if token in self._stop_ids), None)
        drawn = tokens if stop is None else tokens[:stop]
        before = "" if is_chat else self._text(item.ids)
        text = self._text([*(() if is_chat else item.ids), *drawn])[len(before) :]
        places = [place for s in request.stop_strings if (place := text.find(s)) >= 0]
        ended = stop is not None or bool(places)
        return Answer(
            text=text[: min(places)] if places else text,
            finish_reason="stop" if ended else "length",
            num_tokens=len(drawn),
            num_shots=item.num_shots,
        )

    def _text(self, ids: Sequence[int]) -> str:
        return self._encoder.decode(ids)

    def _score(self, items: Sequence[EncodedChoice]) -> list[tuple[float, ...]]:
        """Log-probabilities; continuations that differ in the last token share a forward pass."""
        wanted: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for number, item in enumerate(items):
            for place, continuation in enumerate(item.continuations):
                wanted.setdefault((*item.ids, *continuation[:-1]), []).append((number, place))
        found = [[0.0] * len(item.continuations) for item in items]
        for rows in self._batches(list(wanted)):
            longest = max(len(items[n].continuations[p]) for row in rows for n, p in wanted[row])
            for row, logits in zip(rows, self._logits(rows, longest), strict=True):
                for number, place in wanted[row]:
                    ids = items[number].continuations[place]
                    log_probs = logits[-len(ids) :].float().log_softmax(-1)  # [continuation, v]
                    target = torch.tensor(ids, device=log_probs.device)
                    picked = log_probs.gather(1, target[:, None]).double()
                    found[number][place] = picked.sum().item()
        return [tuple(values) for values in found]

    def _batches(self, rows: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
        """The rows, the longest first, by `batch_tokens` with padding."""
        rows = sorted(rows, key=lambda row: (-len(row), row))
        while rows:
            count = max(1, self._batch_tokens // len(rows[0]))
            yield rows[:count]
            rows = rows[count:]

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Sequence[int]], keep: int) -> torch.Tensor:
        """Logits [b, keep, v] of the last positions; rows are padded on the left."""
        tokens, mask = self._padded(rows)
        options: dict[str, Any] = {}
        if self._takes_positions:
            options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        if self._keeps_logits:
            options["logits_to_keep"] = keep
        out = self._model(input_ids=tokens, attention_mask=mask, use_cache=False, **options)
        return out.logits[:, -keep:]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens and mask, both [b, s], padded on the left."""
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self._pad_id)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        for place, row in enumerate(rows):
            tokens[place, width - len(row) :] = torch.tensor(row)
            mask[place, width - len(row) :] = 1
        return tokens.to(self._device), mask.to(self._device)


class _Stops(StoppingCriteria):
    """Ends a row whose answer contains a stop string."""

    def __init__(self, tokenizer: Any, stop_strings: Sequence[str], width: int) -> None:
        self._tokenizer, self._strings, self._width = tokenizer, stop_strings, width

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        tails = input_ids[:, self._width :][:, -_TAIL_TOKENS:].tolist()
        texts = [self._tokenizer.decode(tail) for tail in tails]
        ended = [any(s in text for s in self._strings) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def check_folder(folder: str) -> Path:
    """A folder whose model can be run, as far as its small files say.

    Raises:
        ConfigError: There is none, it holds no language model, or an adapter only.
        CheckpointError: Weights are missing or contradict each other.
        UnsafeInputError: Its weights are pickles.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"models: {folder} has no config.json. Give a Hugging Face folder; a checkpoint of "
            "ours goes under `checkpoint`."
        )
    if (path / ADAPTER).exists():
        raise ConfigError(
            f"models: {folder} has an {ADAPTER}: transformers would read its base from elsewhere. "
            "Merge the adapter into its base, and give that folder."
        )
    names = read_json_object(path / "config.json").get("architectures") or []
    if names and not any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        raise ConfigError(f"models: {folder} is a {names[0]}, not a language model.")
    if problems := HfWeights(path).problems:
        raise CheckpointError(f"{folder}: {'; '.join(problems[:5])}. Copy the folder again.")
    return path


def folder_identity(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that decides what the model answers, by name."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    return {path.name: sha256_file(path) for path in files if path.is_file()}


def _load(folder: Path, dtype: Any) -> tuple[Any, Any]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **options)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, **options
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"transformers cannot load {folder}: {lines[0]} Code that a folder brings along is "
            "not run."
        ) from error
    return tokenizer, model.eval()


def _encoder(
    folder: Path, entry: ModelEntry, tokenizer: Any, config: Any
) -> tuple[RequestEncoder, tuple[int, ...]]:
    """How prompts are encoded, and the ids that end an answer in the given template."""
    conversations: EncodeConversations | None = None
    stop_ids: tuple[int, ...] = ()
    if entry.template:
        template, ours = load_template(entry.template), load_tokenizer(folder)
        require_fit(template, ours)
        conversations, stop_ids = conversation_encoder(ours, template), template.stop_ids(ours)
    elif getattr(tokenizer, "chat_template", None):
        conversations = _folder_template(tokenizer)
    known = _known_tokenizer(folder)
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    boundary = eos if bos is None else bos
    if not positions or boundary is None:
        what = "max_position_embeddings" if not positions else "beginning or end of sequence"
        raise CheckpointError(f"{folder} names no {what}, which an evaluation needs.")
    adds_bos = _adds_bos(tokenizer) if entry.add_bos is None else entry.add_bos
    if adds_bos and bos is None:
        raise ConfigError(f"models: {entry.name} has no beginning of sequence. Remove add_bos.")
    encoder = RequestEncoder(
        encode_texts=lambda texts: tokenizer(list(texts), add_special_tokens=False)["input_ids"],
        encode_conversations=conversations,
        prefix=(bos,) if adds_bos and bos is not None else (),
        max_positions=positions,
        boundary=boundary,
        decode=_decoder(known, tokenizer),
        tokenizer="" if known is None else known.identity,
    )
    return encoder, stop_ids


def _adds_bos(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _known_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer as ours; None if it is of a kind that we do not read."""
    try:
        return load_tokenizer(folder)
    except ChimedError:
        return None


def _decoder(known: Tokenizer | None, tokenizer: Any) -> Callable[[Sequence[int]], str]:
    """What turns ids into text: ours where possible, which replaces fewer broken bytes."""
    if known is not None:
        return lambda ids: known.decode([i for i in ids if i < known.vocab_size])
    return lambda ids: tokenizer.decode(
        list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def _folder_template(tokenizer: Any) -> EncodeConversations:
    def encode(asked: Sequence[Conversation]) -> list[list[int]]:
        texts = [
            tokenizer.apply_chat_template(
                messages_of(item), tokenize=False, add_generation_prompt=True
            )
            for item in asked
        ]
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    return encode
