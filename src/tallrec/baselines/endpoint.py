"""An OpenAI-compatible endpoint, asked with patience: retries, limits, options that it refuses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tallrec.baselines.journal import Reply
from tallrec.baselines.patience import RateLimit, patiently, sentence
from tallrec.baselines.replies import UnreadableReplyError, read_reply

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI = "https://api.openai.com/v1"
APIS = ("chat", "completions")
_TOP_LOGPROBS = (20, 5)  # the most that OpenAI gives for chats, and for completions
_REFUSED_OPTION = (400, 403, 422)


@dataclass(frozen=True)
class Endpoint:
    """Whom to ask and how; everything but the key, which stays in the environment.

    Attributes:
        model: The model's name there.
        base_url: Such as `http://127.0.0.1:8080/v1`.
        api: `chat`, or `completions` for a base model, which goes on with the text itself.
        key_variable: The environment variable with the key. If None, `OPENAI_API_KEY` for OpenAI
            and no key for anyone else.
        concurrency: Most questions on their way at once.
        requests_per_minute: Most requests in a minute, retries included; None for no limit.
        timeout: Seconds to wait for one answer.
        attempts: How often a question is asked before giving up.
        max_tokens: The longest answer. Log-probabilities need one token; refusals show in a few.
        price_in: Price of a million tokens read, in any currency; None where it is not known.
        price_out: Price of a million tokens written.

    Raises:
        ValueError: If an option is out of range, or the URL is none or holds a secret.
    """

    model: str
    base_url: str = OPENAI
    api: str = "chat"
    key_variable: str | None = None
    concurrency: int = 4
    requests_per_minute: float | None = None
    timeout: float = 60.0
    attempts: int = 8
    max_tokens: int = 16
    price_in: float | None = None
    price_out: float | None = None

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"base_url must be such as {OPENAI}; got {self.base_url!r}")
        if url.username or url.password or url.query:
            raise ValueError(
                "base_url must hold no user, password or query: reports name it; put the key into "
                "an environment variable and name that"
            )
        if self.api not in APIS:
            raise ValueError(f"api must be one of {', '.join(APIS)}; got {self.api!r}")
        for name in ("concurrency", "attempts", "max_tokens", "timeout", "requests_per_minute"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0; got {value}")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("give both prices, of tokens read and of tokens written, or neither")

    @property
    def key_from(self) -> str | None:
        """The environment variable whose key is sent; None if no key is."""
        if self.key_variable is None and self.base_url.rstrip("/") == OPENAI:
            return "OPENAI_API_KEY"
        return self.key_variable

    def key_of(self, prompt: str) -> str:
        """Identifies a question in a journal."""
        asked = [self.base_url.rstrip("/"), self.model, self.api, self.max_tokens, prompt]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


class Client:
    """Asks an endpoint; safe to use from several threads.

    Key and packages are looked for with the first question: whoever has every answer needs none.

    Args:
        endpoint: Whom to ask and how.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._secret = os.environ.get(endpoint.key_from) if endpoint.key_from else None
        self._stopped = Event()
        self._limit = RateLimit(endpoint.requests_per_minute, self._stopped)
        self._options = first_options(endpoint)
        self._heard = False

    def ask(self, prompt: str) -> Reply:
        """The answer to a prompt.

        Raises:
            ValueError: If the endpoint gives none, for good or for too long, or a package or the
                key is missing.
            CancelledError: After `stop`.
        """
        self._check()
        from openai import OpenAIError

        try:
            reply, attempts = patiently(
                lambda: self._attempt(prompt),
                attempts=self.endpoint.attempts,
                limit=self._limit,
                stopped=self._stopped,
                heard=self._heard,
            )
        except (OpenAIError, UnreadableReplyError) as error:
            text = self._without_secret(sentence(self.endpoint, error))
            raise ValueError(text) from None
        self._heard = True
        return replace(reply, retries=attempts - 1)

    def stop(self) -> None:
        """Ends all waiting: questions on their way are answered, but none is asked again."""
        self._stopped.set()

    def _check(self) -> None:
        if find_spec("openai") is None or find_spec("tenacity") is None:
            raise ValueError(
                "asking an endpoint needs packages that are not installed: "
                "pip install 'tallrec[endpoint]'"
            )
        if self.endpoint.key_from and not self._secret:
            raise ValueError(
                f"{self.endpoint.base_url} wants a key: put it into the environment variable "
                f"{self.endpoint.key_from}"
            )

    @cached_property
    def _openai(self) -> OpenAI:
        from openai import OpenAI

        return OpenAI(
            api_key=self._secret or "none",
            base_url=self.endpoint.base_url,
            timeout=self.endpoint.timeout,
            max_retries=0,  # `patiently` counts them, and can be stopped
        )

    def _attempt(self, prompt: str) -> Reply:
        """Asks once; an option that the endpoint refuses is left out from then on."""
        from openai import APIStatusError

        while True:
            options = self._options
            self._limit.wait()
            try:
                return self._request(prompt, options)
            except APIStatusError as error:
                simpler = without_refused(options, error.message)
                if error.status_code not in _REFUSED_OPTION or simpler is None:
                    raise
                self._options = simpler

    def _request(self, prompt: str, options: Mapping[str, Any]) -> Reply:
        model, client = self.endpoint.model, self._openai
        if self.endpoint.api == "completions":
            raw = client.completions.with_raw_response.create(model=model, prompt=prompt, **options)
        else:
            raw = client.chat.completions.with_raw_response.create(
                model=model, messages=[{"role": "user", "content": prompt}], **options
            )
        return read_reply(self.endpoint.key_of(prompt), self._without_secret(raw.text))

    def _without_secret(self, text: str) -> str:
        """Some endpoints send a key back, in errors at least."""
        return text.replace(self._secret, "***") if self._secret else text


def first_options(endpoint: Endpoint) -> dict[str, Any]:
    """What is asked for as long as the endpoint does not refuse it."""
    options = {"max_tokens": endpoint.max_tokens, "temperature": 0}
    return options | _top(endpoint.api, _TOP_LOGPROBS[0])


def without_refused(options: Mapping[str, Any], message: str) -> dict[str, Any] | None:
    """The options without the one that an error message names, or with its next best value.

    Returns:
        None if it names none of them.
    """
    simpler = dict(options)
    if "logprobs" in message and "logprobs" in options:
        chat = "top_logprobs" in options
        asked = options["top_logprobs" if chat else "logprobs"]
        simpler.pop("top_logprobs", None)
        del simpler["logprobs"]
        fewer = (n for n in _TOP_LOGPROBS if n < asked)
        if (n := next(fewer, None)) is not None:
            simpler |= _top("chat" if chat else "completions", n)
        return simpler
    if "max_tokens" in message and "max_tokens" in options:  # OpenAI's models that reason
        simpler["max_completion_tokens"] = simpler.pop("max_tokens")
        return simpler
    if "temperature" in message and "temperature" in options:
        del simpler["temperature"]
        return simpler
    return None


def _top(api: str, n: int) -> dict[str, Any]:
    return {"logprobs": n} if api == "completions" else {"logprobs": True, "top_logprobs": n}
