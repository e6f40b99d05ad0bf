"""The clients of `load.py`: a file for locust, which writes each answer as a line of JSON.

`TALLREC_ITEMS` names a JSON list of the catalogue's ids, `TALLREC_ANSWERS` the file to write.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import HttpUser, between, constant, events, task

ITEMS = json.loads(Path(os.environ["TALLREC_ITEMS"]).read_text(encoding="utf-8"))
ANSWERS = Path(os.environ["TALLREC_ANSWERS"]).open("a", encoding="utf-8")  # noqa: SIM115
random.seed(0)
CANDIDATES, HISTORY = 100, 10
LATER = (429, 503)


@events.request.add_listener
def keep(name: str, response_time: float, response: Any = None, **_: Any) -> None:
    """Writes an answer down."""
    status = response.status_code if response is not None else 0
    answer = {"name": name, "status": status, "at": time.time(), "seconds": response_time / 1000}
    ANSWERS.write(json.dumps(answer) + "\n")
    ANSWERS.flush()


def question(candidates: int = CANDIDATES) -> dict[str, Any]:
    """A random history, and candidates that are not in it."""
    drawn = random.sample(ITEMS, HISTORY + candidates)
    history = [{"item": item, "liked": random.random() < 0.5} for item in drawn[:HISTORY]]
    return {"history": history, "candidates": drawn[HISTORY:]}


class Client(HttpUser):
    """Waits as long as it is told when the service has no time."""

    abstract = True

    def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, name: str = ""
    ) -> None:
        """One request."""
        answer = self.client.request(method, path, json=body, name=name or path)
        if answer.status_code in LATER:
            gevent.sleep(float(answer.headers.get("Retry-After", 1)) * random.uniform(0.5, 1))


class Ranking(Client):
    """Ranks again and again."""

    wait_time = constant(0)

    @task
    def rank(self) -> None:
        """Ranks 100 items."""
        self.ask("POST", "/v1/rank", question())


class Mixed(Client):
    """All that a page and its users ask for, and reading and deleting what is stored, unhurried."""

    wait_time = between(0.5, 1.5)

    @task(2)
    def rank(self) -> None:
        """Ranks 30 items."""
        self.ask("POST", "/v1/rank", question(30))

    @task(2)
    def score(self) -> None:
        """Scores five items after a history with a title of nobody's catalogue."""
        asked = question(5)
        asked["history"].append({"title": f"A film {random.random()} (1999)", "liked": True})
        self.ask("POST", "/v1/score", asked)

    @task(1)
    def explain(self) -> None:
        """Explains an item."""
        asked = question(1)
        self.ask(
            "POST", "/v1/explain", {"history": asked["history"], "item": asked["candidates"][0]}
        )

    @task(4)
    def search(self) -> None:
        """Types a few letters."""
        letters = "".join(random.choices("abcdefghijklmnopqrstuvwxyz ", k=random.randint(1, 6)))
        self.ask("GET", f"/v1/items?q={letters}", name="/v1/items")

    @task(6)
    def say(self) -> None:
        """Says something about an item."""
        said = {"user": self.user(), "item": random.choice(ITEMS), "liked": random.random() < 0.5}
        self.ask("POST", "/v1/feedback", said)

    @task(2)
    def export(self) -> None:
        """Reads what is stored."""
        self.ask("GET", f"/v1/users/{self.user()}/feedback", name="/v1/users/{user}/feedback")

    @task(1)
    def forget(self) -> None:
        """Deletes what is stored."""
        self.ask("DELETE", f"/v1/users/{self.user()}/feedback", name="/v1/users/{user}/feedback")

    @task(1)
    def wrong(self) -> None:
        """What is refused must not cost memory either."""
        self.ask("POST", "/v1/rank", {"history": [{"liked": random.random()}] * 9}, name="wrong")

    @task(1)
    def operation(self) -> None:
        """What a browser and a monitor ask for."""
        self.ask("GET", random.choice(["/metrics", "/readyz", "/v1/model", "/", "/page/page.js"]))

    @staticmethod
    def user() -> str:
        """One of a thousand users."""
        return f"u{random.randrange(1000)}"
