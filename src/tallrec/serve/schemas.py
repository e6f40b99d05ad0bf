"""What the API takes and gives."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ItemId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]
UserId = Annotated[
    str, Field(min_length=1, max_length=128, pattern="^[A-Za-z0-9_.:@+-]+$", examples=["u-5f1c"])
]
_HISTORY = [{"item": "12", "liked": True}, {"title": "A film of my own", "liked": False}]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Event(_Request):
    """An item of the catalogue, or a title that is not in it, and whether it was liked."""

    item: ItemId | None = None
    title: Annotated[str, Field(min_length=1)] | None = None
    liked: bool

    @model_validator(mode="after")
    def _one(self) -> Event:
        if (self.item is None) == (self.title is None):
            raise ValueError("give either item or title")
        return self


History = Annotated[list[Event], Field(description="Oldest first.", examples=[_HISTORY])]


class ScoreRequest(_Request):
    """Which items to score after a history."""

    history: History
    candidates: Annotated[list[ItemId], Field(min_length=1, examples=[["7", "9"]])]


class RankRequest(_Request):
    """Which items to rank after a history; without candidates the best known of the catalogue."""

    history: History
    candidates: Annotated[list[ItemId], Field(min_length=1)] | None = None
    k: Annotated[int, Field(ge=1, le=100)] = 10


class ExplainRequest(_Request):
    """Which item to explain after a history."""

    history: History
    item: Annotated[ItemId, Field(examples=["7"])]


class FeedbackRequest(_Request):
    """What a user says about an item; the last word on an item counts."""

    user: UserId
    item: Annotated[ItemId, Field(examples=["7"])]
    liked: bool


class ReloadRequest(_Request):
    """The run to serve from now on; without one, what the present run's folder holds now."""

    run: Annotated[str, Field(min_length=1)] | None = None


class FoundItem(BaseModel):
    """An item of the catalogue."""

    item: str
    title: str
    creator: str | None


class ScoredItem(FoundItem):
    """An item with its log-odds of a like and their probability."""

    log_odds: float
    probability: float


class Scores(BaseModel):
    """Scores by the named model: in the order of the candidates, or the best first."""

    model: str
    items: list[ScoredItem]
    scored: Annotated[int, Field(description="How many items were scored.")]


class Reason(BaseModel):
    """What showing one event of the history adds to the log-odds."""

    item: str | None
    title: str
    liked: bool
    effect: float


class Explanation(BaseModel):
    """A score and what moved it, the strongest effect first."""

    model: str
    item: ScoredItem
    reasons: list[Reason]


class Items(BaseModel):
    """Found items, the nearest title first."""

    items: list[FoundItem]


class Stored(BaseModel):
    """Feedback that is on disk."""

    stored: int


class Said(BaseModel):
    """What a user said about an item; `at` in microseconds since 1970, UTC."""

    item: str
    title: str
    liked: bool
    at: int


class Export(BaseModel):
    """All that is stored about a user."""

    user: str
    feedback: list[Said]


class Deleted(BaseModel):
    """How many likes and dislikes were deleted."""

    deleted: int


class Card(BaseModel):
    """What the served model is, and the test AUC that its run's report gives."""

    model: str
    by: Literal["model", "gaussian-process"]
    backbone: str
    template: str | None
    shots: int
    seed: int
    domain: str
    items: int
    measured: dict[str, Any] | None


class Health(BaseModel):
    """`ok`, or why not."""

    status: str
