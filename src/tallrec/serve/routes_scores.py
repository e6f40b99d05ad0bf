"""Routes that ask the model or its catalogue."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request

from tallrec.serve.model import left_out, questions
from tallrec.serve.refusals import refusals
from tallrec.serve.schemas import (
    Card,
    ExplainRequest,
    Explanation,
    FoundItem,
    Items,
    RankRequest,
    Reason,
    ScoreRequest,
    Scores,
)
from tallrec.serve.service import Service, with_scores
from tallrec.types import Item

_NEAR = 0.6  # of the nearest title's similarity; what is less near is noise
_REFUSED = refusals(422, 429, 503)
score_routes = APIRouter(prefix="/v1", tags=["scores"])


def service_of(request: Request) -> Service:
    """The service behind a request."""
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(service_of)]
Text = Annotated[str, Query(max_length=200, description="A title or its beginning.")]


@score_routes.post("/score", responses=_REFUSED)
async def score(service: ServiceOf, asked: ScoreRequest) -> Scores:
    """The log-odds of a like for each candidate, in their order."""
    history = service.history(asked.history)
    items = service.candidates(asked.candidates)
    met = {item.id for item, _ in history}
    if known := [item.id for item in items if item.id in met]:
        raise HTTPException(422, f"item {known[0]!r} is in the history: its answer is known")
    model, log_odds = await service.scored(questions(history, items))
    return Scores(model=model.name, items=with_scores(items, log_odds), scored=len(items))


@score_routes.post("/rank", responses=_REFUSED)
async def rank(service: ServiceOf, asked: RankRequest) -> Scores:
    """The best candidates that are not in the history.

    Without candidates, the items with most interactions in the run's data are ranked, as many as a
    request may score.
    """
    history = service.history(asked.history)
    met = {item.id for item, _ in history}
    if asked.candidates is None:
        left = [item for item in service.model.by_popularity if item.id not in met]
        left = left[: service.settings.limits.items]
    else:
        items = service.candidates(asked.candidates)
        left = [item for item in dict.fromkeys(items) if item.id not in met]
    if not left:
        raise HTTPException(422, "all candidates are in the history: nothing is left to rank")
    model, log_odds = await service.scored(questions(history, left))
    best = (-log_odds).argsort(kind="stable")[: asked.k]
    ranked = with_scores([left[i] for i in best], log_odds[best])
    return Scores(model=model.name, items=ranked, scored=len(left))


@score_routes.post("/explain", responses=_REFUSED)
async def explain(service: ServiceOf, asked: ExplainRequest) -> Explanation:
    """What in a history moved the score of an item: each event is left out once."""
    events = service.history(asked.history)
    history = events[service.model.first_shown(len(events)) :]
    item = service.item(asked.item)
    if item in {event for event, _ in events}:
        raise HTTPException(422, f"item {item.id!r} is in the history: its answer is known")
    model, log_odds = await service.scored(left_out(history, item))
    reasons = [
        Reason(item=event.id or None, title=event.title, liked=liked, effect=log_odds[0] - without)
        for (event, liked), without in zip(history, log_odds[1:].tolist(), strict=True)
    ]
    reasons.sort(key=lambda reason: -abs(reason.effect))
    (scored,) = with_scores([item], log_odds[:1])
    return Explanation(model=model.name, item=scored, reasons=reasons)


@score_routes.get("/items", responses=refusals(422))
def items(
    service: ServiceOf,
    q: Text = "",
    limit: Annotated[int, Query(ge=1, le=50)] = 8,
) -> Items:
    """Items whose titles are nearest to `q`; without it the best known."""
    model = service.model
    if not q.strip():
        return Items(items=[_found(item) for item in model.by_popularity[:limit]])
    matches = model.recommender.find(q, limit)
    near = [m for m in matches if m.similarity >= _NEAR * matches[0].similarity]
    return Items(items=[_found(match.item) for match in near])


@score_routes.get("/model")
def card(service: ServiceOf) -> Card:
    """What the served model is and how well it did on its run's test part."""
    return Card(**service.model.card)


def _found(item: Item) -> FoundItem:
    return FoundItem(item=item.id, title=item.title, creator=item.creator)
