"""From the body of an answer to a reply, and from a reply to what it says about the target."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tallrec.baselines.journal import Reply

Said = Literal["yes", "no", "refused", "unparseable"]

PARSED_LOG_ODDS = float(np.log(9))
"""What a parsed Yes counts as, 90 %: a text says which answer, but not how sure the model is."""

_WORDS = ("yes", "no")
_EDGES = " \t\r\n\u2581\u0120\u010a\"'`*_.,:;!()[]\u201c\u201d\u2018\u2019"
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_QUOTED = re.compile(r"\"[^\"\n]*\"|\u201c[^\u201d\n]*\u201d")
_ANSWER = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|unable to|as an ai|(can ?not|can['\u2019]t|won['\u2019]t|"
    r"(could|do|will)( not|n['\u2019]t)) "
    r"(\w+ )?(answer|determine|predict|identify|know|provide|assist|help|say|have))\b",
    re.IGNORECASE,
)


_NEVER = -1000.0  # OpenAI writes -9999 for a token that cannot come


class UnreadableReplyError(Exception):
    """An answer that is not what the OpenAI API promises: cut off, or of something else."""


@dataclass(frozen=True)
class Answer:
    """What a reply says about its target.

    Attributes:
        said: What its text says.
        log_odds: Log-odds of Yes, NaN where neither tokens nor text tell them.
        by: Where the log-odds come from.
        bounded: Whether one of the answers was not among the tokens given, so that its
            probability is taken to be that of the least likely of them, and the log-odds are
            nearer to 0 than they should be.
    """

    said: Said
    log_odds: float
    by: Literal["log-probability", "text", "nothing"]
    bounded: bool = False


def read_reply(key: str, body: str) -> Reply:
    """Reads the body of a chat completion or a completion.

    Raises:
        UnreadableReplyError: If it is neither.
    """
    try:
        content = json.loads(body)
        choice = content["choices"][0]
        message = choice.get("message") or {}
        text = (message["content"] if "message" in choice else choice["text"]) or ""
        usage = content.get("usage") or {}
        return Reply(
            key=key,
            text=_THOUGHT.sub("", text),
            refusal=message.get("refusal"),
            finish=choice.get("finish_reason"),
            top=_first_word(choice.get("logprobs") or {}),
            model=content.get("model"),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        start = " ".join(body.split())[:80]
        raise UnreadableReplyError(f"it answers with {start!r}") from None


def interpret(reply: Reply) -> Answer:
    """What a reply says: by its tokens' log-probabilities if they name an answer, else its text."""
    said = _said(reply)
    yes, no = (_log_sum(p for token, p in reply.top or () if _word(token) == w) for w in _WORDS)
    if np.isfinite(yes) or np.isfinite(no):
        floor = min(p for _, p in reply.top or ())
        bounded = not (np.isfinite(yes) and np.isfinite(no))
        log_odds = max(yes, floor) - max(no, floor)
        return Answer(said, float(log_odds), "log-probability", bounded)
    if said in _WORDS:
        return Answer(said, PARSED_LOG_ODDS if said == "yes" else -PARSED_LOG_ODDS, "text")
    return Answer(said, np.nan, "nothing")


def _said(reply: Reply) -> Said:
    """The answer that a text begins with; else a refusal; else the only answer named in it."""
    if reply.refusal or reply.finish == "content_filter":
        return "refused"
    text = _QUOTED.sub(_answer_or_nothing, reply.text).lstrip(_EDGES)
    found = [word.lower() for word in _ANSWER.findall(text)]
    leading = _ANSWER.match(text)
    if leading:
        found = [leading.group().lower()]
    elif _REFUSAL.search(text):
        return "refused"
    if len(set(found)) == 1:
        return "yes" if found[0] == "yes" else "no"
    return "unparseable"


def _first_word(logprobs: dict[str, Any]) -> list[tuple[str, float]] | None:
    """The likeliest tokens at the first token written that has a letter."""
    for token, top in _positions(logprobs):
        if any(character.isalpha() for character in token):
            return [(text, float(p)) for text, p in top if p is not None and p > _NEVER] or None
    return None


def _positions(logprobs: dict[str, Any]) -> Iterator[tuple[str, Iterable[tuple[str, float]]]]:
    """(token, its alternatives) of each token written, in either of the formats there are."""
    for at in logprobs.get("content") or []:
        yield at["token"], [(t["token"], t["logprob"]) for t in at.get("top_logprobs") or [at]]
    for token, top in zip(
        logprobs.get("tokens") or [], logprobs.get("top_logprobs") or [], strict=False
    ):
        yield token, (top or {}).items()


def _answer_or_nothing(quoted: re.Match[str]) -> str:
    """A title between quotes says nothing about the target, whatever words are in it."""
    return quoted.group() if _word(quoted.group()) in _WORDS else ""


def _word(token: str) -> str:
    return token.strip(_EDGES).casefold()


def _log_sum(log_probabilities: Iterable[float]) -> float:
    """Log of the summed probabilities; minus infinity for none."""
    return float(np.logaddexp.reduce(list(log_probabilities), initial=-np.inf))
