"""Reloading under load, stopping and being killed: nothing that was accepted is lost."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest

from tallrec.serve.feedback import FeedbackStore
from tallrec.serve.model import ServedModel
from tallrec.serve.service import Settings
from tests.serve.client import Client, wait_for
from tests.serve.test_api import PAIRS, TOKEN, score, scores

RIGHT = {"Authorization": f"Bearer {TOKEN}"}
ASKED = {"history": [], "candidates": ["i12", "i13"]}


def test_a_reload_under_load_drops_nothing(serving, model, runs):
    second = ServedModel.load(runs / "second")
    expected = {
        served.name: served.recommender.score([], ASKED["candidates"]) for served in (model, second)
    }
    answers = []

    def keep_asking(client, names):
        while len(names) < 2:
            answers.append(client.post("/v1/score", ASKED, **RIGHT))
            names.add(answers[-1].json["model"])

    with serving(model, Settings(token=TOKEN)) as client, ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking, client, set()) for _ in range(3)]
        reloaded = client.post("/v1/admin/reload", {"run": str(runs / "second")}, **RIGHT)
        for future in asking:
            future.result(120)
        assert client.get("/v1/model", **RIGHT).json["model"] == second.name
    assert reloaded.json == {"model": second.name}
    assert {answer.status for answer in answers} == {200}
    assert not np.allclose(*expected.values(), atol=1e-3)
    for answer in answers:
        np.testing.assert_allclose(scores(answer), expected[answer.json["model"]], atol=1e-4)


def test_a_run_that_cannot_be_served_leaves_the_present_one(serving, model, tmp_path):
    with serving(model, Settings(token=TOKEN)) as client:
        answer = client.post("/v1/admin/reload", {"run": str(tmp_path)}, **RIGHT)
        assert answer.status == 422
        assert "is not a run directory" in answer.text
        assert client.get("/readyz").status == 200
        assert client.get("/v1/model", **RIGHT).json["model"] == model.name


def test_what_waits_is_answered_before_the_server_ends(serving, gated):
    with ThreadPoolExecutor(4) as pool:
        with serving(gated) as client:
            accepted = [pool.submit(score, client)]
            assert gated.held.wait(60)
            accepted += [pool.submit(score, client) for _ in range(2)]
            wait_for(lambda: client.service.worker.waiting == 2)
            threading.Timer(0.5, gated.gate.set).start()  # by then the server is stopping
        assert [future.result(60).status for future in accepted] == [200] * 3
    expected = gated.recommender.score(PAIRS, ["i12", "i13"])
    np.testing.assert_allclose(scores(accepted[-1].result()), expected, atol=1e-4)
    assert not client.service.worker.alive


@contextmanager
def command(run, *options):
    """`tallrec serve` as a process; yields it and a client once it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tallrec", "serve", str(run), "--port", "0", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TALLREC_TOKEN": ""},
    )
    try:
        for line in process.stderr:
            if line.startswith("{") and json.loads(line)["event"] == "ready":
                port = int(json.loads(line)["address"].rsplit(":", 1)[1])
                break
        else:
            pytest.fail(f"the server ended with {process.wait()}")
        yield process, Client(port)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def accepted(metrics):
    """How many rankings were answered or are being worked on."""
    answered = re.search(r'^tallrec_requests_total{route="/v1/rank",.*} (.*)$', metrics, re.M)
    being_asked = re.search(r"^tallrec_requests_open (.*)$", metrics, re.M)
    return int(float(answered[1]) if answered else 0) + int(float(being_asked[1])) - 1


class Cut(Exception):  # noqa: N818 - no error
    """The service is gone."""


def asking(client, done):
    """Asks until the service is gone: each answer goes to `done`."""

    def ask(method, path, body=None):
        try:
            answer = client.ask(method, path, body)
        except (OSError, http.client.HTTPException):
            raise Cut from None
        assert answer.status in (200, 201)
        done.append((path, body))

    return ask


def write(ask, user, asked):
    """Says something about every item as one user after another; asked for may be stored."""
    for n in count():
        for item in range(22):
            said = {"user": f"{user}-{n}", "item": f"i{item}", "liked": bool((n + item) % 2)}
            asked.append(said)
            ask("POST", "/v1/feedback", said)


def forget(ask, user):
    """Says something as one user after another, and has it deleted."""
    for n in count():
        ask("POST", "/v1/feedback", {"user": f"{user}-{n}", "item": "i1", "liked": True})
        ask("DELETE", f"/v1/users/{user}-{n}/feedback")


def rank(ask):
    while True:
        ask("POST", "/v1/rank", {"history": []})


def until_cut(work, *arguments):
    with pytest.raises(Cut):
        work(*arguments)


def facts(said):
    return {(one["user"], one["item"], one["liked"]) for one in said}


def test_nothing_acknowledged_is_lost_when_a_service_is_killed_under_load(runs):
    asked, stored, deleted = [], [], []
    for life, wanted in enumerate((60, 150, 240)):
        with command(runs / "first") as (process, client), ThreadPoolExecutor(8) as pool:
            pool.submit(process.stderr.read)
            now, gone, ranked = [], [], []
            work = [
                pool.submit(until_cut, write, asking(client, now), f"w{life}{n}", asked)
                for n in range(4)
            ]
            work.append(pool.submit(until_cut, forget, asking(client, gone), f"d{life}"))
            work += [pool.submit(until_cut, rank, asking(client, ranked)) for _ in range(2)]
            wait_for(lambda: len(now) >= wanted and min(len(gone), len(ranked)) >= 2)  # noqa: B023
            process.kill()
            for future in work:
                future.result(60)
        stored += [body for _, body in now]
        deleted += [path.split("/")[3] for path, body in gone if body is None]
    store = FeedbackStore(f"sqlite:///{runs / 'first.feedback.db'}")
    events = store.dataset().interactions.select("user", "item", "rating").iter_rows()
    kept = {(user, item, rating == 1) for user, item, rating in events}
    assert facts(stored) <= kept
    assert {one for one in kept if one[0].startswith("w")} <= facts(asked)
    assert not [user for user in deleted if store.of_user(user)]
    store.close()


def test_a_stopped_service_answers_what_it_has_accepted(runs):
    with command(runs / "first") as (process, client), ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, "/v1/rank", {"history": []}) for _ in range(8)]
        wait_for(lambda: accepted(client.get("/metrics").text) == len(asked))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
        done = [future.result(60) for future in asked]
        log = [json.loads(line) for line in process.stderr]
    assert [answer.status for answer in done] == [200] * 8
    assert sum(line.get("route") == "/v1/rank" for line in log) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines: give a token"),  # noqa: S104
        (["--feedback", "mysql://x"], "kept in SQLite or PostgreSQL"),
    ],
)
def test_a_service_that_cannot_start_says_why(runs, options, message):
    done = subprocess.run(
        [sys.executable, "-m", "tallrec", "serve", str(runs / "first"), "--port", "0", *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TALLREC_TOKEN": ""},
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
