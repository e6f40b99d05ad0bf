"""The HTTP API over a `Service`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from tallrec.serve.limits import BodyLimit, same_token
from tallrec.serve.refusals import mistaken, refusals
from tallrec.serve.routes_feedback import feedback_routes
from tallrec.serve.routes_scores import score_routes
from tallrec.serve.schemas import Health, ReloadRequest
from tallrec.serve.service import Service
from tallrec.serve.watch import Watch

_PAGE = Path(__file__).with_name("page")
_BEARER = HTTPBearer(auto_error=False)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]


def create_app(service: Service) -> FastAPI:
    """The application; it closes the service when it shuts down."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    settings = service.settings
    app = FastAPI(
        title="tallrec",
        summary="What would this user like? Scores, rankings and feedback.",
        version=version("tallrec"),
        docs_url=None,  # Swagger and ReDoc load from other sites
        redoc_url=None,
        lifespan=lifespan,
        responses=refusals(400, 408, 413),
    )
    app.state.service = service
    app.exception_handler(SQLAlchemyError)(_no_database)
    app.exception_handler(RequestValidationError)(mistaken)
    app.exception_handler(405)(_other_method)
    guards = [] if settings.token is None else [Depends(_require_token)]
    refused = refusals(401) if guards else {}
    for routes in (score_routes, feedback_routes, _admin):
        app.include_router(routes, dependencies=guards, responses=refused)
    app.include_router(_open)
    app.mount("/page", StaticFiles(directory=_PAGE), name="page")
    # The one added last sees a request first.
    app.add_middleware(BodyLimit, limits=settings.limits)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
        )
    if settings.token is None:  # other sites' names must not lead a browser here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(settings.hosts))
    app.add_middleware(Watch, metrics=service.metrics)
    return app


def _require_token(request: Request, credentials: Credentials) -> None:
    token = request.app.state.service.settings.token
    if credentials is None or not same_token(credentials.credentials, token):
        raise HTTPException(401, "a valid token is needed", {"WWW-Authenticate": "Bearer"})


async def _no_database(_request: Request, _error: Exception) -> Response:
    detail = '{"detail":"the feedback store does not answer"}'
    return Response(detail, 503, {"Retry-After": "5"}, "application/json")


async def _other_method(request: Request, _error: Exception) -> Response:
    """Names all methods of a path; a route knows only its own."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    allowed = ", ".join(method for method in ("DELETE", "GET", "POST") if takes(method))
    return JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": allowed})


_admin = APIRouter()
_open = APIRouter()


@_admin.post("/v1/admin/reload", tags=["admin"], responses=refusals(403, 409, 422))
def reload(request: Request, wanted: ReloadRequest) -> dict[str, str]:
    """Serve another run, or the present one's new adapter, without dropping a request."""
    service: Service = request.app.state.service
    if service.settings.token is None:
        raise HTTPException(403, "reloading needs a service with a token")
    return {"model": service.reload(wanted.run)}


@_admin.get("/metrics", tags=["operation"], response_class=Response)
def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    text = generate_latest(request.app.state.service.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


@_open.get("/", include_in_schema=False)
async def page() -> FileResponse:
    """The page; what it needs is beside it, under /page."""
    return FileResponse(_PAGE / "index.html")


@_open.get("/healthz", tags=["operation"])
async def healthz() -> Health:
    """Whether the process answers."""
    return Health(status="ok")


@_open.get("/readyz", tags=["operation"], responses=refusals(503))
def readyz(request: Request) -> Health:
    """Whether requests can be served: the model's thread works and the database answers."""
    service: Service = request.app.state.service
    if not service.worker.alive:
        raise HTTPException(503, "the model does not run")
    service.store.check()
    return Health(status="ok")
