"""What one request may cost, and who may send it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class Limits:
    """Limits of one request and of the queue.

    Attributes:
        items: Candidates, and events of a history.
        title: Characters of a title that is not in the catalogue.
        body: Bytes of a body.
        seconds: Until a request is given up.
        queue: Requests that wait for the model.
        batch_tokens: Tokens that are scored together.
    """

    items: int = 500
    title: int = 300
    body: int = 65_536
    seconds: float = 30.0
    queue: int = 64
    batch_tokens: int = 4_096


def check_public(host: str, token: str | None) -> None:
    """Refuses to be reachable from other machines without a token.

    Raises:
        ValueError: If that would be so.
    """
    if token is None and not is_loopback(host):
        raise ValueError(
            f"{host} can be reached from other machines: give a token of at least 16 characters "
            "in TALLREC_TOKEN or --token-file, or serve on 127.0.0.1"
        )
    if token is not None and len(token) < 16:
        raise ValueError("a token needs at least 16 characters, such as 'openssl rand -hex 32'")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def same_token(given: str, token: str) -> bool:
    """Compares in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode(), token.encode())


class BodyLimit:
    """Reads a request's body before anything else looks at it: at most so long, in so much time.

    Args:
        app: The application.
        limits: `body` and `seconds` count.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; answers 413 or 408 instead of the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._limits.body
        try:
            async with asyncio.timeout(self._limits.seconds):
                body = await _read(scope, receive, most)
        except ClientDisconnect:
            return
        except TimeoutError:
            await _refuse(408, "the body did not come in time")(scope, receive, send)
            return
        if body is None:
            await _refuse(413, f"a body may have {most:,} bytes")(scope, receive, send)
            return
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def again() -> Message:
            nonlocal whole
            message, whole = whole, None
            return await receive() if message is None else message

        await self._app(scope, again, send)


async def _read(scope: Scope, receive: Receive, most: int) -> bytes | None:
    """The whole body; None if it is too long.

    Raises:
        ClientDisconnect: If the client went away before its end.
    """
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > most:
        return None
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        body += piece
        if len(body) > most:
            return None
        if not message.get("more_body", False):
            return body


def _refuse(status: int, detail: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {"Connection": "close"})
