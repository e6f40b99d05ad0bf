"""Answers that were paid for, on disk the moment they arrive: no run asks for them again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock


@dataclass(frozen=True)
class Reply:
    """What an endpoint answered to one question.

    Attributes:
        key: Identifies the question: who was asked what, with which options.
        text: The answer.
        refusal: The endpoint's own word that the model refuses, None where it gives none.
        finish: Why the answer ended: `stop`, `length`, `content_filter`, ...
        top: The likeliest tokens (text, log-probability) at the first token of the answer that has
            a letter; None where the endpoint gives no log-probabilities.
        model: The model that answered, as the endpoint names it.
        prompt_tokens: Tokens read, None where the endpoint does not count them.
        completion_tokens: Tokens written.
        retries: How often the question had to be asked again.
    """

    key: str
    text: str
    refusal: str | None
    finish: str | None
    top: list[tuple[str, float]] | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    retries: int = 0


class Journal:
    """A file of replies, one JSON object a line, that is only ever appended to.

    Safe to use from several threads of one process.

    Args:
        path: The file; made with the first reply. A last line that a kill cut off is dropped.

    Raises:
        ValueError: If another line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._replies: dict[str, Reply] = {}
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._replies)

    def __contains__(self, key: str) -> bool:
        return key in self._replies

    def __getitem__(self, key: str) -> Reply:
        return self._replies[key]

    def add(self, reply: Reply) -> None:
        """Keeps a reply; when this returns, it is on disk."""
        line = json.dumps(asdict(reply), ensure_ascii=True).encode() + b"\n"
        with self._lock, self._path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
            self._replies[reply.key] = reply

    def _read(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                fields = json.loads(line)
                fields["top"] = fields["top"] and [(token, p) for token, p in fields["top"]]
                reply = Reply(**fields)
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{self._path} is damaged in line {number}: remove that line, and its question "
                    f"is asked again"
                ) from None
            self._replies[reply.key] = reply
        if len(whole) < len(content):  # the next line must not be glued to what was cut off
            os.truncate(self._path, len(whole))
