"""What is told about a running service: a log line a request, and Prometheus metrics.

Neither holds anything a user sent: no title, item, user id, address, token or full path.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tallrec.serve.worker import Batch

LOG = logging.getLogger("tallrec.serve")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_TOKENS = tuple(4**n for n in range(3, 10))
_GONE = 499  # as nginx calls a client that went away before it had an answer
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; "
    b"img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Metrics:
    """The service's metrics.

    Args:
        waiting: How many requests wait for the model.
    """

    def __init__(self, waiting: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "tallrec_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self.open = Gauge(
            "tallrec_requests_open", "Requests not answered yet, this one too", registry=registry
        )
        self.seconds = Histogram(
            "tallrec_request_seconds",
            "Time to answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_seconds = _histogram(
            registry, "seconds", "Time of a call of the model", _SECONDS
        )
        self.batch_requests = _histogram(registry, "requests", "Requests in a call", _COUNTS)
        self.batch_tokens = _histogram(registry, "tokens", "Tokens in a call", _TOKENS)
        self.rows = Counter("tallrec_scored_rows", "Questions scored", registry=registry)
        self.failures = Counter("tallrec_batch_failures", "Calls that failed", registry=registry)
        self.feedback = Counter(
            "tallrec_feedback", "Likes and dislikes stored", ["liked"], registry=registry
        )
        Gauge(
            "tallrec_queue_requests", "Requests that wait for the model", registry=registry
        ).set_function(waiting)

    def on_batch(self, batch: Batch) -> None:
        """Counts a call of the model."""
        self.batch_seconds.observe(batch.seconds)
        self.batch_requests.observe(batch.requests)
        self.batch_tokens.observe(batch.tokens)
        self.rows.inc(batch.rows)
        if batch.failed:
            self.failures.inc()


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...]
) -> Histogram:
    return Histogram(f"tallrec_batch_{name}", text, buckets=buckets, registry=registry)


class Watch:
    """Logs and counts every request and gives every answer its security headers.

    Args:
        app: The application.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), _GONE
        request = uuid4().hex[:16]
        added = [*_HEADERS.items(), (b"x-request-id", request.encode())]

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        self._metrics.open.inc()
        try:
            await self._app(scope, receive, watched)
        except Exception:
            status = 500
            raise
        finally:
            self._metrics.open.dec()
            seconds = time.monotonic() - began
            # The route's pattern: the path itself may hold a user's id.
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            facts = {"request": request, "method": scope["method"], "route": route}
            told(logging.INFO, "request", **facts, status=status, seconds=round(seconds, 4))


def told(level: int, what: str, **facts: object) -> None:
    """Logs an event with its facts."""
    LOG.log(level, what, extra={"facts": facts})


class JsonLines(logging.Formatter):
    """One JSON object a line; of an exception its type and place, not its text."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[0]:
            kind, _, trace = record.exc_info
            line["exception"] = kind.__name__
            line["trace"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(trace)
            ]
        return json.dumps(line)


def log_json() -> None:
    """Sends what the service and its web server log to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("tallrec.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
