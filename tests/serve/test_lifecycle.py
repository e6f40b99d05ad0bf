"""Reloading under load, stopping and being killed: nothing that was accepted is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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


def test_a_killed_service_has_kept_all_that_it_acknowledged_and_a_stopped_one_answers(runs):
    url = f"sqlite:///{runs / 'first.feedback.db'}"
    with command(runs / "first") as (process, client):
        for n in range(20):
            said = {"user": f"u{n}", "item": f"i{n}", "liked": True}
            assert client.post("/v1/feedback", said).status == 201
        process.kill()
        process.wait()
    store = FeedbackStore(url)
    assert [store.of_user(f"u{n}")[0].item for n in range(20)] == [f"i{n}" for n in range(20)]
    store.close()

    with command(runs / "first") as (process, client), ThreadPoolExecutor(8) as pool:
        assert client.get("/v1/users/u7/feedback").json["feedback"][0]["item"] == "i7"
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
