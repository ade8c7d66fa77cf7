"""A client of OpenAI-compatible servers: bounded retries with back-off, and clear failures.

Keys come from an environment variable and are sent to the given address only: redirects are not
followed, and no message contains a key. Each wait for the server's next bytes is bounded by
`timeout_seconds`, so a server that drips may take longer.
"""

import email.utils
import http.client
import ipaddress
import json
import os
import random
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from megatron_chimed.errors import ConfigError

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""HTTP statuses that may pass."""
KEY_STATUSES = frozenset({401, 403})
FIRST_WAIT = 1.0  # seconds, doubled after each attempt
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 300.0  # what a Retry-After may ask for
MOST_BYTES = 1 << 24  # of a response
SHOWN = 200  # characters of a server's message


class RequestFailure(Exception):  # noqa: N818  (no mistake of the user: it is counted)
    """A request that failed for good.

    Args:
        reason: For the report; the same words for the same kind of failure.
        status: HTTP status, if there was a response.
        message: What the server said.
        may_pass: Whether another attempt at another time could succeed.
    """

    def __init__(
        self, reason: str, *, status: int | None = None, message: str = "", may_pass: bool = True
    ) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason, self.status, self.message, self.may_pass = reason, status, message, may_pass
        self.wait: float | None = None


@dataclass(frozen=True, kw_only=True)
class EndpointSettings:
    """Where a server is and how patient its client is."""

    url: str
    """Base URL, up to `/v1`."""
    api_key_variable: str | None = None
    """Environment variable with the key; None: no key is sent."""
    timeout_seconds: float = 120.0
    """How long each wait for the server may take."""
    max_retries: int = 5
    """Further attempts after a failure that may pass."""
    first_wait: float = FIRST_WAIT
    """Seconds before the second attempt, doubled from then on, times a random 0.5 to 1."""


class EndpointClient:
    """A server; its methods may be called from several threads.

    Raises:
        ConfigError: The environment variable of the key is not set, or holds no key.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._key = _key(settings.api_key_variable)
        self._closed = threading.Event()
        handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
        if _is_this_machine(settings.url):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def close(self) -> None:
        """Ends all waits between attempts; their requests fail."""
        self._closed.set()

    def require_reachable(self) -> None:
        """Asks for the list of models, once.

        Raises:
            ConfigError: Nothing answers, or the key is refused.
        """
        try:
            self._attempt("models", None)
        except RequestFailure as failure:
            if failure.status is None and failure.may_pass:
                raise ConfigError(
                    f"endpoint {self._url} does not answer ({failure.message or failure.reason}). "
                    "Start the server, or fix the address, and try again."
                ) from None
            self._raise_if_refused(failure)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends JSON and returns the JSON object of the response.

        Args:
            path: Below the base URL.
            body: JSON.

        Raises:
            ConfigError: The key is refused.
            RequestFailure: It failed for good, or still after all retries.
        """
        wait = self._settings.first_wait
        for attempt in range(self._settings.max_retries + 1):
            try:
                return self._attempt(path, body)
            except RequestFailure as failure:
                self._raise_if_refused(failure)
                asked = failure.wait or 0.0
                is_last = attempt == self._settings.max_retries
                if is_last or not failure.may_pass or asked > LONGEST_ASKED_WAIT:
                    raise
                # Jitter, so that threads that failed together do not come back together.
                pause = min(wait, LONGEST_WAIT) * random.uniform(0.5, 1.0)  # noqa: S311
                if self._closed.wait(max(pause, asked)):
                    raise
                wait *= 2
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", data=data, headers=headers)
        try:
            with self._opener.open(request, timeout=self._settings.timeout_seconds) as response:
                raw = response.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise self._http_failure(error) from None
        except TimeoutError:
            raise RequestFailure("the endpoint did not answer in time") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise RequestFailure("the endpoint did not answer in time") from None
            may_pass = not isinstance(error.reason, ssl.SSLCertVerificationError)
            message = self._scrubbed(str(error.reason))
            raise RequestFailure(
                "the endpoint could not be reached", message=message, may_pass=may_pass
            ) from None
        except (OSError, http.client.HTTPException) as error:
            message = self._scrubbed(str(error))
            raise RequestFailure("the connection to the endpoint broke", message=message) from None
        return _object(raw)

    def _http_failure(self, error: urllib.error.HTTPError) -> RequestFailure:
        try:
            text = error.read(MOST_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        failure = RequestFailure(
            f"the endpoint answered with HTTP {error.code}",
            status=error.code,
            message=self._scrubbed(_message(text)),
            may_pass=error.code in RETRIED,
        )
        failure.wait = _retry_after(error.headers.get("Retry-After"))
        return failure

    def _raise_if_refused(self, failure: RequestFailure) -> None:
        if failure.status not in KEY_STATUSES:
            return
        name = self._settings.api_key_variable
        key = f"the key in {name}" if name else "a request without key; set api_key_variable"
        raise ConfigError(
            f"endpoint {self._url} refused {key} (HTTP {failure.status}: {failure.message})."
        ) from None

    def _scrubbed(self, text: str) -> str:
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:SHOWN]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another address."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        return None


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        problem = "is not set" if not key else "holds no key: blanks or other characters are in it"
        raise ConfigError(f"environment variable {variable} {problem}. Put the endpoint's key in.")
    return key


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MOST_BYTES:
        raise RequestFailure("the endpoint's response is larger than 16 MiB", may_pass=False)
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        raise RequestFailure("the endpoint's response is not JSON") from None
    if not isinstance(value, dict):
        raise RequestFailure("the endpoint's response is no JSON object")
    return value


def _message(text: str) -> str:
    """The message of an error's body, in the usual places, else the body."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = value.get("error", value) if isinstance(value, dict) else value
    found = error.get("message", error) if isinstance(error, dict) else error
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _retry_after(value: str | None) -> float | None:
    """Seconds that a header asks to wait, given as a number or as a date."""
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
