"""A checkpoint of ours under evaluation, on the shards, at any layout."""

from collections.abc import Sequence

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.data.templates import Template, encode_prompts
from megatron_chimed.evaluation.models.encoding import (
    EncodeConversations,
    EncodedChoice,
    EncodedPrompt,
    PrefixRun,
    RequestEncoder,
    choice_likelihoods,
    encode_prompt,
    runs_with_one_prefix,
    text_likelihoods,
)
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    LikelihoodRequest,
    Likelihoods,
    Refused,
    TextLikelihood,
    TextRequest,
)
from megatron_chimed.generation import (
    Continuations,
    Session,
    log_likelihoods,
    make_prompt_encoder,
)
from megatron_chimed.generation.completion import gather_replicas, in_order, stream_completions
from megatron_chimed.generation.requests import Request
from megatron_chimed.generation.session import require_tokenizer
from megatron_chimed.tokenizer import Tokenizer


class ShardModel:
    """Answers requests with a session; every rank calls it with the same arguments.

    Args:
        session: With a tokenizer.
        template: For conversations; None: there is none, and they are refused.
        weights: Identity of the checkpoint.
        add_bos: As of `make_prompt_encoder`.
        max_batch: Answers that are drawn together in each replica.
        batch_tokens: Tokens in a scoring forward pass of each replica.

    Raises:
        CheckpointError: The checkpoint has no tokenizer.
        ConfigError: Template, tokenizer and `add_bos` do not fit.
    """

    gives_likelihoods = True

    def __init__(
        self,
        session: Session,
        template: Template | None,
        *,
        weights: str,
        add_bos: bool | None,
        max_batch: int,
        batch_tokens: int,
    ) -> None:
        tokenizer = require_tokenizer(session)
        self._session, self._template = session, template
        self._max_batch, self._batch_tokens = max_batch, batch_tokens
        text_encoder = make_prompt_encoder(tokenizer, None, add_bos)
        self._stop_ids = tuple(
            dict.fromkeys((*(template.stop_ids(tokenizer) if template else ()), *session.stop_ids))
        )
        self._encoder = RequestEncoder(
            encode_texts=tokenizer.encode_batch,
            encode_conversations=conversation_encoder(tokenizer, template),
            prefix=tuple(text_encoder.prefix),
            max_positions=session.config.max_position_embeddings,
            boundary=tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id,
            decode=tokenizer.decode,
            tokenizer=tokenizer.identity,
        )
        self.identity = {
            "weights": weights,
            "tokenizer": tokenizer.identity,
            "template": template.identity if template else "none",
            "beginning of sequence": "yes" if text_encoder.prefix else "no",
            "precision": str(session.settings.params_dtype).removeprefix("torch."),
        }

    def likelihoods(self, requests: list[LikelihoodRequest]) -> list[Likelihoods | Refused]:
        """As of `EvaluatedModel`."""
        return choice_likelihoods(self._encoder, requests, self._score)

    def text_likelihoods(self, requests: list[TextRequest]) -> list[TextLikelihood | Refused]:
        """As of `EvaluatedModel`."""
        return text_likelihoods(self._encoder, requests, self._score)

    def _score(self, items: Sequence[EncodedChoice]) -> list[tuple[float, ...]]:
        found: dict[int, tuple[float, ...]] = {}
        for run in runs_with_one_prefix(items):
            found |= self._log_probs(run)
        return [found[index] for index in range(len(items))]

    def _log_probs(self, run: PrefixRun) -> dict[int, tuple[float, ...]]:
        shared = len(run.prefix)
        found = log_likelihoods(
            self._session,
            [
                Continuations(context=item.ids[shared:], continuations=item.continuations)
                for item in run.items.values()
            ],
            prefix=run.prefix,
            batch_tokens=self._batch_tokens,
        )
        return {
            index: tuple(value.log_prob for value in values)
            for index, values in zip(run.items, found, strict=True)
        }

    def answers(self, requests: list[AnswerRequest]) -> list[Answer | Refused]:
        """As of `EvaluatedModel`; requests of equal settings are drawn together."""
        answers: list[Answer | Refused | None] = [None] * len(requests)
        for sampling, indices in self._by_sampling(requests).items():
            room = self._encoder.max_positions - sampling.max_new_tokens
            encoded = {
                index: encode_prompt(self._encoder, requests[index].prompt, room)
                for index in indices
            }
            drawn = self._draw(encoded, requests, sampling)
            for index, item in encoded.items():
                answers[index] = item if isinstance(item, Refused) else drawn[index]
        return [answer for answer in answers if answer is not None]

    def _by_sampling(self, requests: Sequence[AnswerRequest]) -> dict[SamplingConfig, list[int]]:
        groups: dict[SamplingConfig, list[int]] = {}
        for index, request in enumerate(requests):
            sampling = SamplingConfig(
                max_new_tokens=request.max_new_tokens,
                temperature=request.temperature,
                top_p=request.top_p,
                seed=request.seed,
                stop_strings=request.stop_strings,
                stop_token_ids=self._stop_ids,
            )
            groups.setdefault(sampling, []).append(index)
        return groups

    def _draw(
        self,
        encoded: dict[int, EncodedPrompt | Refused],
        requests: Sequence[AnswerRequest],
        sampling: SamplingConfig,
    ) -> dict[int, Answer]:
        fitting = {i: item for i, item in encoded.items() if isinstance(item, EncodedPrompt)}
        asked = [
            Request(prompt=item.ids, prompt_id=index, starts_text=requests[index].prompt.is_chat)
            for index, item in fitting.items()
        ]
        own = list(stream_completions(self._session, asked, sampling, max_batch=self._max_batch))
        return {
            completion.prompt_id: Answer(
                text=completion.text or "",
                finish_reason=completion.finish_reason,
                num_tokens=len(completion.token_ids),
                num_shots=fitting[completion.prompt_id].num_shots,
            )
            for completion in in_order(gather_replicas(self._session, own))
        }


def conversation_encoder(
    tokenizer: Tokenizer, template: Template | None
) -> EncodeConversations | None:
    """What encodes conversations up to the answer; None without a template."""
    if template is None:
        return None
    return lambda asked: encode_prompts(tokenizer, template, asked)
