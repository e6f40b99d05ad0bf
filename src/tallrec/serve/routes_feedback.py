"""Routes that store, export and delete what users said."""

from __future__ import annotations

from fastapi import APIRouter

from tallrec.serve.refusals import refusals
from tallrec.serve.routes_scores import ServiceOf
from tallrec.serve.schemas import Deleted, Export, FeedbackRequest, Said, Stored, UserId

feedback_routes = APIRouter(prefix="/v1", tags=["feedback"], responses=refusals(422, 503))


@feedback_routes.post("/feedback", status_code=201)
def feedback(service: ServiceOf, said: FeedbackRequest) -> Stored:
    """Store a like or a dislike. What was answered with 201 is on disk."""
    item = service.item(said.item)
    service.store.add(said.user, [(item.id, said.liked)])
    service.metrics.feedback.labels(str(said.liked).lower()).inc()
    return Stored(stored=1)


@feedback_routes.get("/users/{user}/feedback")
def export(service: ServiceOf, user: UserId) -> Export:
    """All that is stored about a user."""
    said = [Said(**one._asdict()) for one in service.store.of_user(user)]
    return Export(user=user, feedback=said)


@feedback_routes.delete("/users/{user}/feedback")
def forget(service: ServiceOf, user: UserId) -> Deleted:
    """Delete all that is stored about a user."""
    return Deleted(deleted=service.store.delete_user(user))
