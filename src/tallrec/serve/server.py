"""A service on a port: from a run directory to a web server that stops without losing anything."""

from __future__ import annotations

import logging
import math
import socket
from pathlib import Path

import uvicorn

from tallrec.serve.app import create_app
from tallrec.serve.feedback import FeedbackStore
from tallrec.serve.limits import check_public
from tallrec.serve.model import ServedModel
from tallrec.serve.service import Service, Settings
from tallrec.serve.watch import log_json, told
from tallrec.steps.data import Say

_MARGIN_S = 5  # for answers that are on their way when time is up


def serve_run(
    run: Path,
    *,
    host: str,
    port: int,
    feedback: str | None,
    settings: Settings,
    seed: int | None = None,
    say: Say = print,
) -> None:
    """Serves a run until SIGTERM or Ctrl-C; requests accepted by then are answered.

    Args:
        run: A finished run directory.
        host: The address to listen on.
        port: The port; 0 takes a free one, which the log's event `ready` names.
        feedback: The URL of the feedback store; a SQLite file beside the run unless given.
        settings: Limits and access.
        seed: Which seed of the run; its first unless given.
        say: Shows a line to the user.

    Raises:
        ValueError: If the run cannot be served, the address is taken or reachable from other
            machines without a token, or the feedback store cannot be used.
    """
    check_public(host, settings.token)
    listener = bound(host, port)
    say(f"Loading {run}")
    model = ServedModel.load(run, seed=seed, by=settings.by)
    beside = run.resolve()
    url = feedback or f"sqlite:///{beside.with_name(f'{beside.name}.feedback.db')}"
    app = create_app(Service(model, FeedbackStore(url), settings))
    log_json()
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    listener.listen()  # whoever reads that it is ready can connect
    say(f"Page and API: {address} (Ctrl-C stops)")
    told(logging.INFO, "ready", address=address, model=model.name)
    config = uvicorn.Config(
        app,
        http="h11",  # whatever else is installed: it bounds headers
        ws="none",  # there are none, and refusing one would log an address
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(settings.limits.seconds) + _MARGIN_S,
    )
    uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to before the server listens on it."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"cannot serve on {host}, port {port}: {error.strerror}") from None
    return listener
