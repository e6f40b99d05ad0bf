"""What is not taken is refused early, is told why and not what it said, and is in the API."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from tallrec.serve.limits import Limits
from tallrec.serve.model import ServedModel, questions
from tallrec.serve.service import Settings
from tallrec.serve.worker import QueueFullError, Worker
from tests.serve.client import wait_for
from tests.serve.test_api import TOKEN, score


def test_what_would_be_answered_too_late_is_refused_at_once(gated):
    """Else all wait until their time is up and are scored all the same: nobody is answered."""
    samples = questions([], list(gated.items.values()))
    batches = []
    worker = Worker(gated, queue_size=64, seconds=1, batch_tokens=1, on_batch=batches.append)
    try:
        first = worker.submit(samples)
        assert gated.held.wait(60)
        waiting = [worker.submit(samples) for _ in range(2)]
        worker._pace = 0.3  # seconds a request, as measured on a slow machine
        with pytest.raises(QueueFullError):  # the fourth would be done after 1.2 seconds, not 0.5
            worker.submit(samples)
        gated.gate.set()
        expected = first.result(60).log_odds
        for future in waiting:
            np.testing.assert_array_equal(future.result(60).log_odds, expected)
        wait_for(lambda: len(batches) == 3)
        worker._pace = 3.0  # too slow for any, but who else would show that it is faster by now?
        assert worker.submit(samples).result(60).log_odds.shape == (22,)
        assert worker._pace < 3.0
    finally:
        worker.stop()


@dataclass(frozen=True)
class Slow(ServedModel):
    """A model that takes its time."""

    def score(self, rows):
        time.sleep(0.1)
        return super().score(rows)


def test_an_overloaded_service_answers_most_of_what_it_takes(serving, model):
    slow = Slow(model.path, model.recommender, model.card)

    def ask(client, _):
        answer = score(client)
        if answer.status == 429:
            time.sleep(0.3)
        return answer.status

    limits = Limits(seconds=1, batch_tokens=1)  # ten requests in time, for 32 clients
    with serving(slow, Settings(limits)) as client, ThreadPoolExecutor(32) as pool:
        statuses = list(pool.map(partial(ask, client), range(400)))
    assert set(statuses) <= {200, 429, 503}
    known = statuses[64:]  # by then the service has learnt how slow it is
    assert known.count(429) > 0
    assert known.count(200) > 3 * known.count(503)


@pytest.mark.parametrize("body", [b'{"history": NaN}', b"\xff\xfe", b'{"history": ["\\ud800"]}'])
def test_what_was_sent_is_not_repeated(serving, model, body):
    with serving(model) as client:
        plain = client.post("/v1/rank", body, Content_Type="text/plain")
        answer = client.post("/v1/rank", body, Content_Type="application/json")
        many = client.post("/v1/rank", {"history": [{"secret": 1}] * 400})
    assert (plain.status, many.status) == (422, 422)
    assert answer.status in (400, 422)
    assert len(many.json["detail"]) == 10
    assert len(many.text) < 2_000


def test_a_client_that_hangs_up_before_it_has_said_all_says_nothing(serving, model):
    said = b'{"user": "ann", "item": "i4", "liked": true}'
    head = "POST /v1/feedback HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with serving(model) as client:
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            length = f"Content-Length: {len(said) + 1}\r\n\r\n"
            connection.sendall(head.encode() + length.encode() + said)
        wait_for(lambda: 'status="499"' in client.get("/metrics").text)
        assert client.get("/v1/users/ann/feedback").json["feedback"] == []


def test_a_405_names_all_methods_of_a_path(serving, model):
    with serving(model) as client:
        found = {
            path: client.ask("PATCH", path).headers.get("allow")
            for path in ("/v1/rank", "/v1/users/ann/feedback", "/v1/items", "/nowhere")
        }
    assert found == {
        "/v1/rank": "POST",
        "/v1/users/ann/feedback": "DELETE, GET",
        "/v1/items": "GET",
        "/nowhere": None,
    }


def test_refusals_are_described_with_what_they_say(serving, model):
    with serving(model) as client:
        free = client.get("/openapi.json").json["paths"]
    with serving(model, Settings(token=TOKEN)) as client:
        guarded = client.get("/openapi.json").json["paths"]
    rank = {"200", "400", "408", "413", "422", "429", "503"}
    assert free["/v1/rank"]["post"]["responses"].keys() == rank
    assert "security" not in free["/v1/rank"]["post"]
    assert guarded["/v1/rank"]["post"]["responses"].keys() == rank | {"401"}
    assert guarded["/v1/rank"]["post"]["security"]
    assert "security" not in guarded["/healthz"]["get"]
    assert guarded["/v1/admin/reload"]["post"]["responses"].keys() >= {"401", "403", "409", "422"}
    busy = free["/v1/rank"]["post"]["responses"]["429"]["content"]["application/json"]["schema"]
    assert busy["$ref"].endswith("/Refusal")
