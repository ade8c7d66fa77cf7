"""An OpenAI-compatible server under evaluation: it answers, and gives no log-probabilities."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from megatron_chimed.errors import ConfigError, ParallelError
from megatron_chimed.evaluation.config import ModelEntry
from megatron_chimed.evaluation.models.endpoint import (
    EndpointClient,
    EndpointSettings,
    RequestFailure,
)
from megatron_chimed.evaluation.models.messages import messages_of
from megatron_chimed.evaluation.requests import (
    Answer,
    AnswerRequest,
    LikelihoodRequest,
    Likelihoods,
    Refused,
    TextLikelihood,
    TextRequest,
)

_TOO_LONG = re.compile(r"context|too long|max\w*.{0,20}(?:length|tokens)|tokens?.{0,20}max", re.I)
MOST_STOP_STRINGS = 4  # that the interface takes; the answer is cut at the others here


class EndpointModel:
    """Answers requests with a server.

    Args:
        entry: Address, model, key and patience.

    Raises:
        ConfigError: The key's environment variable is not set.
    """

    gives_likelihoods = False

    def __init__(self, entry: ModelEntry) -> None:
        assert entry.model is not None, "checked by the entry"
        self._entry = entry
        self._endpoint = EndpointClient(endpoint_settings(entry))
        self.identity = {"endpoint": str(entry.endpoint), "model": entry.model}

    def likelihoods(self, requests: list[LikelihoodRequest]) -> list[Likelihoods | Refused]:
        """Never called: `gives_likelihoods` is false."""
        raise NotImplementedError

    def text_likelihoods(self, requests: list[TextRequest]) -> list[TextLikelihood | Refused]:
        """Never called: `gives_likelihoods` is false."""
        raise NotImplementedError

    def answers(self, requests: list[AnswerRequest]) -> list[Answer | Refused]:
        """As of `EvaluatedModel`; a request that fails for good is refused with its reason.

        Raises:
            ConfigError: The server refuses the key or does not know the model.
            ParallelError: All requests failed and the server does not answer any more.
        """
        found = in_threads(self._endpoint, self._entry.concurrency, self._answer, requests)
        if found and all(isinstance(item, Refused) for item in found):
            self._require_alive()
        return found

    def _answer(self, request: AnswerRequest) -> Answer | Refused:
        """The answer with as many shots as the server accepts."""
        failure: RequestFailure | None = None
        for num_shots in range(len(request.prompt.shots), -1, -1):
            try:
                return self._ask(request, num_shots)
            except RequestFailure as error:
                failure = error
                if not (error.status in (400, 413, 422) and _TOO_LONG.search(error.message)):
                    break
        assert failure is not None, "there is at least one attempt"
        if failure.status == 404:
            raise ConfigError(
                f"endpoint {self._entry.endpoint} does not know the model {self._entry.model!r} or "
                f"the address (HTTP 404: {failure.message}). Fix `model` or `endpoint`."
            ) from None
        return Refused(reason=failure.reason)

    def _ask(self, request: AnswerRequest, num_shots: int) -> Answer:
        rendered = request.prompt.render(num_shots)
        body: dict[str, Any] = {
            "model": self._entry.model,
            "max_tokens": request.max_new_tokens,
            "temperature": request.temperature,
        }
        if request.temperature > 0:
            body |= {"top_p": request.top_p, "seed": request.seed}
        if request.stop_strings:
            body["stop"] = list(request.stop_strings[:MOST_STOP_STRINGS])
        if isinstance(rendered, str) and self._entry.completes_text:
            response = self._endpoint.post("completions", {**body, "prompt": rendered})
        else:
            messages = messages_of(rendered)
            response = self._endpoint.post("chat/completions", {**body, "messages": messages})
        text, reason = read_choice(response)
        places = [place for stop in request.stop_strings if (place := text.find(stop)) >= 0]
        usage = response.get("usage")
        count = usage.get("completion_tokens") if isinstance(usage, dict) else None
        return Answer(
            text=text[: min(places)] if places else text,
            finish_reason="stop" if places else reason,
            num_tokens=count if type(count) is int else 0,
            num_shots=num_shots,
        )

    def _require_alive(self) -> None:
        try:
            self._endpoint.require_reachable()
        except ConfigError as error:
            raise ParallelError(
                f"{error} What was answered before is kept: the same command resumes."
            ) from None


def endpoint_settings(entry: ModelEntry) -> EndpointSettings:
    """The settings of an entry's client."""
    return EndpointSettings(
        url=str(entry.endpoint),
        api_key_variable=entry.api_key_variable,
        timeout_seconds=entry.timeout_seconds,
        max_retries=entry.max_retries,
    )


def in_threads(
    endpoint: EndpointClient,
    concurrency: int,
    action: Callable[[Any], Any],
    items: Sequence[Any],
) -> list[Any]:
    """The results of an action that asks the endpoint, in order; ends its waits on an error."""
    pool = ThreadPoolExecutor(concurrency)
    try:
        return list(pool.map(action, items))
    except BaseException:
        endpoint.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def read_choice(response: dict[str, Any]) -> tuple[str, str]:
    """Text and finish reason of a response; no content is an empty answer.

    Raises:
        RequestFailure: The response has another form.
    """
    try:
        choice = response["choices"][0]
        reason = choice.get("finish_reason") or "stop"
        if "message" in choice:
            text = choice["message"].get("content")
            text = choice["message"].get("refusal") if text is None else text
        else:
            text = choice["text"]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise RequestFailure("the endpoint's response has no choices") from None
    if not isinstance(text, str | None) or not isinstance(reason, str):
        raise RequestFailure("the endpoint's response has no text")
    return text or "", reason
