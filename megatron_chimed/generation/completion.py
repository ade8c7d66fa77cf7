"""Completions of prompts: `generate` returns all of them, `stream_completions` yields each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.decoder import Decoder, TokenCallback
from megatron_chimed.generation.requests import (
    Completion,
    Request,
    check_requests,
    make_requests,
)
from megatron_chimed.generation.session import Session


def stream_completions(
    session: Session,
    requests: Sequence[Request],
    sampling: SamplingConfig,
    *,
    max_batch: int = 16,
    with_log_probs: bool = False,
    on_token: TokenCallback | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Completion]:
    """Completes requests with continuous batching, yielding each completion when it ends.

    Every rank calls it with the same arguments and iterates to the end: the ranks of a replica run
    each step together. All ranks of a replica (data-parallel rank) yield the same completions; the
    prompts are distributed over replicas, which yield different ones.

    Args:
        session: The model.
        requests: Candidates of a prompt in a row, so that they share one prefill.
        sampling: How to draw and where to end.
        max_batch: Number of completions that run together in a replica; changes speed and memory
            (`cache_bytes`), not results.
        with_log_probs: Set `Completion.log_probs`.
        on_token: Called after each token of this replica, with the index of the request in
            `requests`.
        should_stop: Called before each step; must return the same on every rank of the replica.
            Once it is true, running completions end as `interrupted` and no more are started.

    Raises:
        DataError: A prompt is empty, too long, or not of this vocabulary.
        ConfigError: `max_batch`, a stop token or a stop string is invalid.
        NumericError: Logits are not finite.
    """
    if max_batch < 1:
        raise ConfigError(f"max_batch is {max_batch}: it counts completions. Set 1 or more.")
    check_requests(session, requests, sampling)
    own = _share(requests, session.ranks)
    if not own:
        return iter(())
    indices = [index for index, _ in own]
    decoder = Decoder(
        session,
        [request for _, request in own],
        sampling,
        max_batch=max_batch,
        with_log_probs=with_log_probs,
        on_token=on_token and (lambda index, *event: on_token(indices[index], *event)),
    )
    return _run(decoder, with_log_probs, should_stop)


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    num_candidates: int = 1,
    max_batch: int = 16,
    with_log_probs: bool = False,
    on_token: TokenCallback | None = None,
) -> list[Completion]:
    """Completes prompts; every rank calls it with the same arguments.

    Args:
        session: The model.
        prompts: Token ids, begin of sequence included if the model was trained with one.
        sampling: How to draw and where to end.
        num_candidates: Number of completions of each prompt.
        max_batch: As in `stream_completions`.
        with_log_probs: As in `stream_completions`.
        on_token: As in `stream_completions`.

    Returns:
        The completions in order of prompt and candidate, on every rank.

    Raises:
        ChimedError: As in `stream_completions`.
    """
    requests = make_requests(prompts, num_candidates=num_candidates)
    found = stream_completions(
        session,
        requests,
        sampling,
        max_batch=max_batch,
        with_log_probs=with_log_probs,
        on_token=on_token,
    )
    return in_order(gather_replicas(session, list(found)))


def in_order(completions: Sequence[Completion]) -> list[Completion]:
    """Sorted by prompt, then by candidate."""
    return sorted(completions, key=lambda c: (c.prompt_id, c.candidate))


def gather_replicas(session: Session, completions: Sequence[Completion]) -> list[Completion]:
    """The completions of all replicas, unordered, on every rank."""
    ranks = session.ranks
    if ranks.layout.data_parallel_size == 1:
        return list(completions)
    is_sender = ranks.tensor_rank == 0 and ranks.pipeline_rank == 0
    sent = map(asdict, completions if is_sender else ())
    return [completion_of(fields) for fields in ranks.agreement.gather_items(sent)]


def completion_of(fields: Mapping[str, Any]) -> Completion:
    """A completion from its fields as read from JSON."""
    tuples: dict[str, Any] = {k: tuple(v) for k, v in fields.items() if isinstance(v, list)}
    return Completion(**{**fields, **tuples})


def _run(
    decoder: Decoder, with_log_probs: bool, should_stop: Callable[[], bool] | None
) -> Iterator[Completion]:
    while decoder:
        stops = should_stop is not None and should_stop()
        for row in decoder.stop() if stops else decoder.step():
            yield row.completion(with_log_probs=with_log_probs)
        if stops:
            return


def _share(requests: Sequence[Request], ranks: Ranks) -> list[tuple[int, Request]]:
    """This replica's requests with their indices: prompts round robin, candidates together."""
    replica, num_replicas = ranks.data_rank, ranks.layout.data_parallel_size
    order: dict[int, int] = {}
    for request in requests:
        order.setdefault(request.prompt_id, len(order))
    return [
        (index, request)
        for index, request in enumerate(requests)
        if order[request.prompt_id] % num_replicas == replica
    ]
