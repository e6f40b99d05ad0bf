"""In-context learning: a model that is not tuned answers questions, with or without examples.

A baseline of the paper (Alpaca, text-davinci-002 and -003, ChatGPT). A local backbone is asked
through `LlmScorer`; here is what asks any OpenAI-compatible endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np

from tallrec.baselines.endpoint import Client, Endpoint
from tallrec.baselines.journal import Journal, Reply
from tallrec.baselines.replies import interpret
from tallrec.evaluate import AnswerCounts
from tallrec.progress import OnProgress, silent
from tallrec.prompts import Template
from tallrec.prompts.in_context import question
from tallrec.types import FloatArray, Samples

_LOOK_UP = 0.5  # seconds between looks at Ctrl-C


@dataclass(frozen=True)
class InContextScorer:
    """An endpoint as a `Scorer`; what its journal holds is not asked again.

    Attributes:
        client: Asks the endpoint.
        journal: Where replies are kept.
        template: How a sample becomes text; see `with_examples` for few-shot prompts.
        domain: The noun for an item.
        on_progress: Called after each reply.
    """

    client: Client
    journal: Journal
    template: Template
    domain: str
    on_progress: OnProgress = silent

    def __call__(self, samples: Samples) -> FloatArray:
        """Log-odds of a like for each sample, shape [n]; NaN where the answer tells none."""
        return np.array([interpret(reply).log_odds for reply in self.replies(samples)])

    def replies(self, samples: Samples) -> list[Reply]:
        """What is answered to each sample, in their order.

        Raises:
            ValueError: If the endpoint cannot be asked to the end. What it answered is kept.
        """
        lead = self.template.chat if self.client.endpoint.api == "chat" else ""
        prompts = [lead + question(self.template, sample, self.domain) for sample in samples]
        return ask_all(self.client, self.journal, prompts, self.on_progress)


def ask_all(
    client: Client, journal: Journal, prompts: Sequence[str], on_progress: OnProgress = silent
) -> list[Reply]:
    """Asks what the journal does not hold yet, several questions at once.

    The first question goes alone: what it finds out about the endpoint, the others need not.
    When something goes wrong, Ctrl-C included, nothing more is sent, but answers on their way are
    waited for and kept: they are paid for.

    Args:
        client: Asks the endpoint.
        journal: Where replies are kept.
        prompts: The questions; one that comes twice is asked once.
        on_progress: Called after each reply.

    Returns:
        One reply a prompt, in their order.

    Raises:
        ValueError: If the endpoint cannot be asked to the end.
    """
    keys = [client.endpoint.key_of(prompt) for prompt in prompts]
    missing = [p for k, p in dict(zip(keys, prompts, strict=True)).items() if k not in journal]
    done = len(set(keys)) - len(missing)

    def ask(prompt: str) -> None:
        try:
            journal.add(client.ask(prompt))
        except BaseException:
            client.stop()  # here, before this thread takes the next question
            raise

    with ThreadPoolExecutor(client.endpoint.concurrency) as pool:
        futures: list[Future[None]] = []
        try:
            for group in (missing[:1], missing[1:]):
                futures = [pool.submit(ask, prompt) for prompt in group]
                for answered in _as_answered(futures):
                    done += answered
                    on_progress(done, len(set(keys)), "")
        except BaseException as error:
            client.stop()
            on_progress(done, len(set(keys)), "stopping: waiting for answers on their way")
            pool.shutdown(cancel_futures=True)
            if isinstance(error, CancelledError):
                error = _cause(futures) or error
            raise error from None
    return [journal[key] for key in keys]


def _as_answered(futures: Sequence[Future[None]]) -> Iterator[int]:
    """How many more are answered, whenever some are."""
    pending = set(futures)
    while pending:
        # Polars handles SIGINT too, in a way that does not end a wait: look up now and then.
        answered, pending = wait(pending, timeout=_LOOK_UP, return_when=FIRST_COMPLETED)
        for future in answered:
            future.result()
        if answered:
            yield len(answered)


def _cause(futures: Sequence[Future[None]]) -> BaseException | None:
    """The error that stopped the others, if one did."""
    errors = (future.exception() for future in futures if not future.cancelled())
    return next((e for e in errors if e and not isinstance(e, CancelledError)), None)


def count_answers(endpoint: Endpoint, replies: Sequence[Reply]) -> AnswerCounts:
    """How questions were answered, and what that took.

    Args:
        endpoint: Its prices make the cost.
        replies: One a question; a reply to the same question twice took its tokens once.
    """
    answers = [interpret(reply) for reply in replies]
    said = [answer.said for answer in answers]
    by = [answer.by for answer in answers]
    paid = {reply.key: reply for reply in replies}.values()
    read = _sum(reply.prompt_tokens for reply in paid)
    written = _sum(reply.completion_tokens for reply in paid)
    return {
        "asked": len(answers),
        "said_yes": said.count("yes"),
        "said_no": said.count("no"),
        "refused": said.count("refused"),
        "unparseable": said.count("unparseable"),
        "by_log_probability": by.count("log-probability"),
        "by_text": by.count("text"),
        "bounded": sum(answer.bounded for answer in answers),
        "prompt_tokens": read,
        "completion_tokens": written,
        "cost": _cost(endpoint, read, written),
        "retries": sum(reply.retries for reply in paid),
    }


def _sum(tokens: Iterable[int | None]) -> int | None:
    """None if one is not known."""
    known = list(tokens)
    return None if None in known else sum(n for n in known if n is not None)


def _cost(endpoint: Endpoint, read: int | None, written: int | None) -> float | None:
    if endpoint.price_in is None or endpoint.price_out is None or read is None or written is None:
        return None
    return (read * endpoint.price_in + written * endpoint.price_out) / 1e6
