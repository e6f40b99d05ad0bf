"""Waiting for an endpoint: what is worth another attempt, how long to wait, what to say at last."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING

from tallrec.baselines.replies import UnreadableReplyError

if TYPE_CHECKING:
    from openai import APIStatusError
    from tenacity import RetryCallState

    from tallrec.baselines.endpoint import Endpoint
    from tallrec.baselines.journal import Reply

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds; drawn at random below a bound that doubles
_LONGEST_ORDERED_WAIT = 600.0
_TEMPORARY = (408, 409, 425, 429)
_NO_MONEY = "insufficient_quota"  # OpenAI sends it with 429, but no waiting helps


class RateLimit:
    """Spaces requests evenly, and holds all of them back when an endpoint asks for a pause.

    Args:
        per_minute: Most requests in a minute; None for no limit.
        stopped: Ends all waiting.
    """

    def __init__(self, per_minute: float | None, stopped: Event) -> None:
        self._interval = 60 / per_minute if per_minute else 0.0
        self._stopped = stopped
        self._lock = Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Returns when the next request may go.

        Raises:
            CancelledError: If waiting was ended.
        """
        with self._lock:
            at = max(time.monotonic(), self._next)
            self._next = at + self._interval
        if self._stopped.wait(max(0.0, at - time.monotonic())):
            raise CancelledError

    def pause(self, seconds: float) -> None:
        """No request goes for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def patiently(
    ask: Callable[[], Reply], *, attempts: int, limit: RateLimit, stopped: Event, heard: bool
) -> tuple[Reply, int]:
    """Asks until there is an answer: exponential backoff with jitter, or as long as we are told.

    Args:
        ask: One attempt.
        attempts: The most there may be.
        limit: Is paused for all when the endpoint says that it is asked too much.
        stopped: Ends the waiting, and further attempts.
        heard: Whether the endpoint has answered before; if not, nobody listening is final.

    Returns:
        The answer and how many attempts it took.

    Raises:
        Exception: The last attempt's error.
    """
    from tenacity import (
        Retrying,
        retry_if_exception,
        sleep_using_event,
        stop_after_attempt,
        stop_when_event_set,
        wait_random_exponential,
    )

    backoff = wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)

    def wait(state: RetryCallState) -> float:
        ordered = _ordered_wait(_error(state))
        return backoff(state) if ordered is None else ordered

    def pause(state: RetryCallState) -> None:
        if getattr(_error(state), "status_code", None) == 429 and state.next_action:
            limit.pause(state.next_action.sleep)

    retrying = Retrying(
        retry=retry_if_exception(lambda error: _is_temporary(error, heard)),
        wait=wait,
        before_sleep=pause,
        stop=stop_after_attempt(attempts) | stop_when_event_set(stopped),
        sleep=sleep_using_event(stopped),
        reraise=True,
    )
    reply = retrying(ask)
    return reply, int(retrying.statistics["attempt_number"])


def sentence(endpoint: Endpoint, error: BaseException) -> str:
    """What went wrong, for a person."""
    from openai import APIConnectionError, APIStatusError, APITimeoutError

    url = endpoint.base_url
    if isinstance(error, APITimeoutError):
        return (
            f"{url} did not answer within {endpoint.timeout:g} s, {endpoint.attempts} times in a "
            f"row: give it more time, or ask fewer questions at once"
        )
    if isinstance(error, APIConnectionError):
        reason = str(error.__cause__ or error)
        return f"nobody answers at {url} ({reason}): is the server running, and the URL right?"
    if not isinstance(error, APIStatusError):
        return f"{url} is not usable as an OpenAI-compatible endpoint: {error}"
    return f"{_refusal(endpoint, error)} ({_short(error.message)})"


def _refusal(endpoint: Endpoint, error: APIStatusError) -> str:
    url = endpoint.base_url
    if error.status_code == 401:
        place = f"the key in {endpoint.key_from}" if endpoint.key_from else "requests without a key"
        return f"{url} does not take {place}"
    if error.status_code == 404:
        return f"{url} has no model {endpoint.model!r}, or no {endpoint.api} there"
    if _is_temporary(error, heard=True):
        return f"{url} could not answer, {endpoint.attempts} times in a row"
    return f"{url} refuses what {endpoint.model} is asked"


def _short(text: str) -> str:
    return " ".join(text.split())[:300]


def _is_temporary(error: BaseException, heard: bool) -> bool:
    from openai import APIConnectionError, APIStatusError

    if isinstance(error, UnreadableReplyError):
        return True
    if isinstance(error, APIConnectionError):
        # By name: the client has moved from one HTTP library to another.
        return heard or type(error.__cause__).__name__ != "ConnectError"
    if not isinstance(error, APIStatusError) or error.code == _NO_MONEY:
        return False
    if (_ordered_wait(error) or 0) > _LONGEST_ORDERED_WAIT:
        return False
    return error.status_code in _TEMPORARY or error.status_code >= 500


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _ordered_wait(error: BaseException | None) -> float | None:
    """Seconds that the endpoint asks to wait (RFC 9110, section 10.2.3), if it does."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
