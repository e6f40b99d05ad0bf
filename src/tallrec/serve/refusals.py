"""What the service answers to requests that it does not take, and how the API describes that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel

if TYPE_CHECKING:
    from fastapi import Request, Response

_MISTAKES = 10  # that are named: one request can hold thousands
_NAME = 100  # characters of a name in a request
_WHEN = {
    400: "The body is no JSON that can be read, or the host is no name of this server.",
    401: "A valid token is needed.",
    403: "The service has no token, so that nobody may do this.",
    408: "The body did not come in time.",
    409: "Another reload is going on.",
    413: "The body is longer than it may be.",
    422: "Something in the request is not right.",
    429: "Too many requests wait; `Retry-After` says for how many seconds.",
    503: "Time was up, or a part of the service does not work; `Retry-After` as for 429.",
}


class Mistake(BaseModel):
    """One thing that is wrong in a request, and where."""

    loc: list[str | int]
    msg: str
    type: str


class Refusal(BaseModel):
    """Why a request was not taken."""

    detail: str | list[Mistake]


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Responses for the API's description."""
    return {status: {"model": Refusal, "description": _WHEN[status]} for status in statuses}


async def mistaken(_request: Request, error: Exception) -> Response:
    """The answer to a request that is not as described; an exception handler of FastAPI.

    Unlike FastAPI's own, it does not repeat what was sent, which may be long and may be what JSON
    or UTF-8 cannot express (NaN, bytes, half of a surrogate pair).
    """
    assert isinstance(error, RequestValidationError)
    detail = [
        {"loc": [_name(part) for part in one["loc"]], "msg": one["msg"], "type": one["type"]}
        for one in error.errors()[:_MISTAKES]
    ]
    return JSONResponse({"detail": detail}, 422)


def _name(part: str | int) -> str | int:
    """A place in a request; the names of its fields are whatever the client wrote."""
    if isinstance(part, int):
        return part
    return part[:_NAME].encode("utf-8", "backslashreplace").decode()
