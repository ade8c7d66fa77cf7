"""The two ways to ask for completions: all at once, or each as soon as it is there."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from megatron_chimed.config.sampling import SamplingConfig
from megatron_chimed.engine import Ranks
from megatron_chimed.errors import ConfigError
from megatron_chimed.generation.decode import Decoder, Listener
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
    listener: Listener | None = None,
    is_stopped: Callable[[], bool] | None = None,
) -> Iterator[Completion]:
    """Completes requests with continuous batching, yielding each completion when it ends.

    Every rank calls it with the same arguments and iterates to the end: ranks that share a model
    run step by step together. All ranks of a replica (data-parallel rank) yield the same
    completions; replicas share out the prompts and yield their own.

    Args:
        session: The model.
        requests: The candidates of one prompt together, which then share one prefill.
        sampling: How to draw and where to end.
        max_batch: Completions that run together in a replica; changes speed and memory
            (`cache_bytes`), not results.
        with_log_probs: Give `Completion.log_probs`.
        listener: Told about each token of this replica, by the place of the request in `requests`.
        is_stopped: Asked before each step, and has to say the same on every rank of the replica;
            once it is true, what runs is `interrupted`, and nothing else is started.

    Raises:
        DataError: A prompt is empty, too long, or not of this vocabulary.
        ConfigError: `max_batch`, a stop token, or stop strings that cannot be.
        NumericError: Logits are not finite.
    """
    if max_batch < 1:
        raise ConfigError(f"max_batch is {max_batch}: it counts completions. Set 1 or more.")
    check_requests(session, requests, sampling)
    own = _share(requests, session.ranks)
    if not own:
        return iter(())
    places = [place for place, _ in own]
    decoder = Decoder(
        session,
        [request for _, request in own],
        sampling,
        max_batch=max_batch,
        with_log_probs=with_log_probs,
        listener=listener and (lambda number, *told: listener(places[number], *told)),
    )
    return _run(decoder, with_log_probs, is_stopped)


def generate(
    session: Session,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    *,
    num_candidates: int = 1,
    max_batch: int = 16,
    with_log_probs: bool = False,
    listener: Listener | None = None,
) -> list[Completion]:
    """Completes prompts; every rank calls it with the same arguments.

    Args:
        session: The model.
        prompts: Token ids, begin of sequence included if the model was trained with one.
        sampling: How to draw and where to end.
        num_candidates: Completions of each prompt.
        max_batch: As in `stream_completions`.
        with_log_probs: As in `stream_completions`.
        listener: As in `stream_completions`.

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
        listener=listener,
    )
    return in_order(gather_replicas(session, list(found)))


def in_order(completions: Sequence[Completion]) -> list[Completion]:
    """By prompt, then by candidate."""
    return sorted(completions, key=lambda c: (c.prompt_id, c.candidate))


def gather_replicas(session: Session, completions: Sequence[Completion]) -> list[Completion]:
    """The completions of all replicas, in no order, on every rank."""
    ranks = session.ranks
    if ranks.layout.data_parallel_size == 1:
        return list(completions)
    speaks = ranks.tensor_rank == 0 and ranks.pipeline_rank == 0
    told = map(asdict, completions if speaks else ())
    return [completion_of(fields) for fields in ranks.agreement.gather_items(told)]


def completion_of(fields: Mapping[str, Any]) -> Completion:
    """A completion from its fields as JSON has them."""
    return Completion(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _run(
    decoder: Decoder, with_log_probs: bool, is_stopped: Callable[[], bool] | None
) -> Iterator[Completion]:
    while decoder:
        stops = is_stopped is not None and is_stopped()
        for row in decoder.stop() if stops else decoder.step():
            yield row.completion(with_log_probs=with_log_probs)
        if stops:
            return


def _share(requests: Sequence[Request], ranks: Ranks) -> list[tuple[int, Request]]:
    """This replica's requests and their places: whole prompts in turn, candidates together."""
    replica, num_replicas = ranks.data_rank, ranks.layout.data_parallel_size
    numbers: dict[int, int] = {}
    for request in requests:
        numbers.setdefault(request.prompt_id, len(numbers))
    return [
        (place, request)
        for place, request in enumerate(requests)
        if numbers[request.prompt_id] % num_replicas == replica
    ]
