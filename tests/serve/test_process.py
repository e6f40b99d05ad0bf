"""A run with a Gaussian process is served by it, without loading its backbone."""

import threading

import numpy as np
import pytest

from tallrec.serve.model import ServedModel, ServedProcess
from tallrec.serve.service import Settings
from tests.test_pipeline import process_run

HISTORY = [("i0", True), ("i1", False), ("i2", True)]
EVENTS = [{"item": item, "liked": liked} for item, liked in HISTORY]
KEY = "a token of sixteen characters or more"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return process_run(tmp_path_factory.mktemp("process"), tiny_folder)


@pytest.fixture(scope="module")
def served(run):
    return ServedModel.load(run)


def log_odds(answer):
    return {item["item"]: item["log_odds"] for item in answer.json["items"]}


def test_scores_rankings_and_reasons_are_those_of_the_recommender(serving, served, monkeypatch):
    def no_backbone(*_arguments, **_options):
        raise AssertionError("loaded")

    monkeypatch.setattr("tallrec.steps.gaussian.load", no_backbone)
    assert isinstance(served, ServedProcess)
    candidates = ["i9", "i4", "i21"]
    with serving(served) as client:
        asked = {"history": EVENTS, "candidates": candidates}
        scored = log_odds(client.post("/v1/score", asked))
        ranked = client.post("/v1/rank", {"history": EVENTS, "k": 4})
        reasons = client.post("/v1/explain", {"history": EVENTS, "item": "i9"}).json["reasons"]
    expected = served.recommender.score(HISTORY, candidates)
    assert list(scored.values()) == pytest.approx(expected.tolist(), abs=1e-9)
    best = served.recommender.rank(HISTORY, k=4)
    assert list(log_odds(ranked)) == best["item"].to_list()
    effects = dict(served.recommender.explain(HISTORY, "i9").select("item", "effect").rows())
    assert {r["item"]: r["effect"] for r in reasons} == pytest.approx(effects, abs=1e-9)


def test_a_title_of_nobodys_catalogue_is_read_by_the_backbone(serving, served, capfd):
    own = [*EVENTS, {"title": "Sea of stars", "liked": True}]
    with serving(served) as client:
        asked = {"history": own, "candidates": ["i9", "i4"]}
        with_title = log_odds(client.post("/v1/score", asked))
        without = log_odds(client.post("/v1/score", {**asked, "history": EVENTS}))
    assert np.isfinite(list(with_title.values())).all()
    assert with_title != pytest.approx(without, abs=1e-3)
    assert "Reading titles" not in capfd.readouterr().err  # a log of JSON lines


def test_many_at_once_get_their_own_answers(serving, served):
    histories = [[EVENTS[0]], EVENTS, EVENTS[1:], []]
    answers = {}
    with serving(served) as client:

        def ask(n):
            asked = {"history": histories[n], "candidates": ["i9", "i4"]}
            answers[n] = log_odds(client.post("/v1/score", asked))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(histories))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n, history in enumerate(histories):
        pairs = [(event["item"], event["liked"]) for event in history]
        expected = served.recommender.score(pairs, ["i9", "i4"])
        assert list(answers[n].values()) == pytest.approx(expected.tolist(), abs=1e-9)


def test_the_card_says_what_scores_and_how_well_that_did(run, served, serving):
    with serving(served) as client:
        card = client.get("/v1/model").json
    assert card["by"] == "gaussian-process"
    assert card["template"] is None
    assert card["shots"] == 24
    by_model = ServedModel.load(run, by="model").card
    assert by_model["by"] == "model"
    assert by_model["template"] == "timeline"
    assert by_model["measured"]["auc"] != card["measured"]["auc"]
    assert by_model["model"] != card["model"]


def test_a_reload_asks_what_was_asked_before(run, serving):
    model = ServedModel.load(run, by="model")
    with serving(model, Settings(token=KEY, by="model")) as client:
        bearer = {"Authorization": f"Bearer {KEY}"}
        assert client.post("/v1/admin/reload", {}, **bearer).status == 200
        assert client.get("/v1/model", **bearer).json["by"] == "model"
