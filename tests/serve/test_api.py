"""The API over real HTTP: scores are the model's own, limits hold, and what is kept is guarded."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tallrec.serve.limits import Limits, check_public
from tallrec.serve.model import questions
from tallrec.serve.service import Settings
from tallrec.serve.watch import JsonLines
from tests.serve.client import wait_for

HISTORY = [{"item": f"i{n}", "liked": n % 2 == 1} for n in range(11)]
PAIRS = [(event["item"], event["liked"]) for event in HISTORY]
TOKEN = "a-token-of-the-tests"  # noqa: S105


def scores(answer):
    return np.array([item["log_odds"] for item in answer.json["items"]])


def score(client, history=HISTORY, candidates=("i12", "i13")):
    return client.post("/v1/score", {"history": history, "candidates": list(candidates)})


def test_scores_are_those_of_the_model(serving, model):
    candidates = ["i15", "i12", "i21"]
    with serving(model) as client:
        answer = score(client, candidates=candidates)
    assert answer.status == 200
    assert answer.json["model"] == model.name
    assert [item["title"] for item in answer.json["items"]] == ["Sea 15", "Hill 12", "Sea 21"]
    expected = model.recommender.score(PAIRS, candidates)
    np.testing.assert_allclose(scores(answer), expected, atol=1e-4)
    odds = np.exp(expected)
    probabilities = [item["probability"] for item in answer.json["items"]]
    np.testing.assert_allclose(probabilities, odds / (1 + odds), atol=1e-4)


def test_a_title_that_is_not_in_the_catalogue_counts_like_any_other(serving, model):
    by_title = [*HISTORY[:-1], {"title": "Hill 10", "liked": False}]
    other = [*HISTORY[:-1], {"title": "Nowhere", "liked": True}]
    with serving(model) as client:
        same, different = score(client, by_title), score(client, other)
    expected = model.recommender.score(PAIRS, ["i12", "i13"])
    np.testing.assert_allclose(scores(same), expected, atol=1e-4)
    assert np.abs(scores(different) - expected).max() > 1e-3


def test_a_ranking_is_that_of_the_recommender(serving, model):
    expected = model.recommender.rank(PAIRS, k=4)
    with serving(model) as client:
        whole = client.post("/v1/rank", {"history": HISTORY, "k": 4})
        given = client.post("/v1/rank", {"history": HISTORY, "candidates": ["i3", "i17", "i17"]})
        nothing = client.post("/v1/rank", {"history": HISTORY, "candidates": ["i3"]})
    assert [item["item"] for item in whole.json["items"]] == expected["item"].to_list()
    assert whole.json["scored"] == 22 - 11
    assert [item["item"] for item in given.json["items"]] == ["i17"]
    assert (nothing.status, "nothing is left" in nothing.text) == (422, True)


def test_without_candidates_the_best_known_are_ranked(serving, model):
    with serving(model, Settings(Limits(items=20))) as client:
        answer = client.post("/v1/rank", {"history": [], "k": 100})
    ranked = {item["item"] for item in answer.json["items"]}
    assert ranked == {f"i{n}" for n in range(20)}  # nobody has met i20 and i21


def test_an_explanation_is_that_of_the_recommender(serving, model):
    expected = model.recommender.explain(PAIRS, "i12")
    with serving(model) as client:
        answer = client.post("/v1/explain", {"history": HISTORY, "item": "i12"})
        empty = client.post("/v1/explain", {"history": [], "item": "i12"})
    effects = {reason["item"]: reason["effect"] for reason in answer.json["reasons"]}
    assert effects == pytest.approx(dict(expected.select("item", "effect").iter_rows()), abs=1e-4)
    strengths = [abs(reason["effect"]) for reason in answer.json["reasons"]]
    assert strengths == sorted(strengths, reverse=True)
    assert empty.json["reasons"] == []


def test_requests_that_wait_are_scored_together_and_apart(serving, gated):
    histories = [HISTORY[:n] for n in range(6)]
    with serving(gated) as client, ThreadPoolExecutor(8) as pool:
        first = pool.submit(score, client)
        assert gated.held.wait(60)
        asked = [pool.submit(score, client, history) for history in histories]
        wait_for(lambda: client.service.worker.waiting == len(asked))
        gated.gate.set()
        answers = [future.result() for future in (first, *asked)]
        told = client.get("/metrics").text
    assert "tallrec_batch_requests_count 2.0" in told
    assert "tallrec_batch_requests_sum 7.0" in told
    assert "tallrec_scored_rows_total 14.0" in told
    for answer, events in zip(answers[1:], histories, strict=True):
        pairs = [(event["item"], event["liked"]) for event in events]
        expected = gated.recommender.score(pairs, ["i12", "i13"])
        np.testing.assert_allclose(scores(answer), expected, atol=1e-4)


def test_a_batch_takes_no_more_tokens_than_it_may(serving, gated):
    with serving(gated, Settings(Limits(batch_tokens=1))) as client, ThreadPoolExecutor(8) as pool:
        gated.gate.set()
        answers = list(pool.map(lambda _: score(client), range(5)))
        told = client.get("/metrics").text
    assert all(answer.status == 200 for answer in answers)
    assert "tallrec_batch_requests_count 5.0" in told


def test_a_full_queue_says_when_to_come_again(serving, gated):
    with serving(gated, Settings(Limits(queue=2))) as client, ThreadPoolExecutor(8) as pool:
        accepted = [pool.submit(score, client)]
        assert gated.held.wait(60)
        accepted += [pool.submit(score, client) for _ in range(2)]
        wait_for(lambda: client.service.worker.waiting == 2)
        refused = score(client)
        gated.gate.set()
        assert all(future.result().status == 200 for future in accepted)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1


def test_a_request_is_given_up_in_time_and_the_next_is_answered(serving, gated):
    with serving(gated, Settings(Limits(seconds=0.2))) as client:
        late = score(client)
        gated.gate.set()
        samples = questions([], list(gated.items.values()))
        assert len(client.service.worker.submit(samples).result(60).log_odds) == 22
    assert late.status == 503
    assert "retry-after" in late.headers


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/score", b"x" * 5_000, 413, "a body may have 4,000 bytes"),
        ("/v1/score", {"history": [], "candidates": ["i1"] * 31}, 422, "30 candidates"),
        ("/v1/score", {"history": [], "candidates": []}, 422, "at least 1"),
        ("/v1/score", {"history": [], "candidates": ["x9"]}, 422, "no item 'x9'"),
        ("/v1/score", {"history": HISTORY, "candidates": ["i3"]}, 422, "is in the history"),
        ("/v1/score", {"history": [], "candidates": ["i1"], "a": 1}, 422, "not permitted"),
        ("/v1/score", b"{", 422, "JSON"),
        ("/v1/rank", {"history": HISTORY[:1] * 31}, 422, "30 events"),
        ("/v1/rank", {"history": [{"title": "t" * 41, "liked": True}]}, 422, "40 characters"),
        ("/v1/rank", {"history": [{"liked": True}]}, 422, "either item or title"),
        ("/v1/rank", {"history": [], "k": 0}, 422, "greater than or equal to 1"),
        ("/v1/explain", {"history": HISTORY, "item": "i3"}, 422, "is in the history"),
        ("/v1/feedback", {"user": "ann", "item": "x9", "liked": True}, 422, "no item 'x9'"),
        ("/v1/feedback", {"user": "a/b", "item": "i1", "liked": True}, 422, "pattern"),
        ("/v1/admin/reload", {}, 403, "needs a service with a token"),
    ],
)
def test_what_is_not_right_is_refused(serving, model, path, body, status, message):
    limits = Limits(items=30, title=40, body=4_000)
    with serving(model, Settings(limits)) as client:
        headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
        answer = client.post(path, body, **headers)
    assert answer.status == status, answer.text
    assert message in answer.text


def test_a_body_without_a_length_is_limited_too(serving, model):
    import http.client

    with serving(model, Settings(Limits(body=4_000))) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=60)
        pieces = (b"x" * 1_000 for _ in range(5))
        connection.request("POST", "/v1/score", pieces, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()


def test_a_token_guards_everything_but_health_and_page(serving, model):
    right = {"Authorization": f"Bearer {TOKEN}"}
    with serving(model, Settings(token=TOKEN)) as client:
        for path in ("/v1/items", "/v1/model", "/metrics", "/v1/users/ann/feedback"):
            assert client.get(path).status == 401
            assert client.get(path, Authorization="Bearer a-token-of-the-test5").status == 401
            assert client.get(path, **right).status == 200
        assert client.post("/v1/score", {}).headers["www-authenticate"] == "Bearer"
        assert [client.get(path).status for path in ("/", "/healthz", "/readyz")] == [200] * 3


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "shop.example"])  # noqa: S104
def test_other_machines_need_a_token(host):
    with pytest.raises(ValueError, match="can be reached from other machines: give a token"):
        check_public(host, None)
    with pytest.raises(ValueError, match="at least 16 characters"):
        check_public(host, "short")
    check_public(host, TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none(host):
    check_public(host, None)


def test_pages_of_other_origins_may_ask_only_if_named(serving, model):
    shop = {"Origin": "https://shop.example", "Access_Control_Request_Method": "POST"}
    with serving(model) as client:
        assert "access-control-allow-origin" not in client.get("/v1/items", **shop).headers
        assert client.get("/v1/items", Host="attacker.example").status == 400
    with serving(model, Settings(origins=("https://shop.example",))) as client:
        answer = client.ask("OPTIONS", "/v1/rank", **shop)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        other = client.get("/v1/items", Origin="https://other.example")
        assert "access-control-allow-origin" not in other.headers


def test_items_are_found_by_title(serving, model):
    with serving(model) as client:
        found = client.get("/v1/items?q=sea+17&limit=3").json["items"]
        nothing = client.get("/v1/items?q=%20?!").json["items"]
        best_known = client.get("/v1/items?limit=3").json["items"]
    assert found[0] == {"item": "i17", "title": "Sea 17", "creator": None}
    assert {item["title"].split()[0] for item in found} == {"Sea"}
    assert (nothing, len(best_known)) == ([], 3)


def test_the_card_says_what_was_measured(serving, model, runs):
    report = json.loads((runs / "first" / "report.json").read_text(encoding="utf-8"))
    with serving(model) as client:
        card = client.get("/v1/model").json
    assert card["measured"]["auc"] == report["systems"][0]["metrics"]["auc"]["mean"]
    assert card["measured"]["best_counting"]["name"] == report["best_counting"]["auc"]
    assert (card["shots"], card["items"], card["domain"]) == (8, 22, "movie")


def test_a_users_feedback_is_exported_and_deleted(serving, model):
    with serving(model) as client:
        for item, liked in (("i4", True), ("i5", False)):
            said = {"user": "ann", "item": item, "liked": liked}
            assert client.post("/v1/feedback", said).status == 201
        export = client.get("/v1/users/ann/feedback").json
        deleted = client.ask("DELETE", "/v1/users/ann/feedback").json
        after = client.get("/v1/users/ann/feedback").json
    said = [(one["item"], one["title"], one["liked"]) for one in export["feedback"]]
    assert said == [("i4", "Hill 4", True), ("i5", "Sea 5", False)]
    assert (deleted, after) == ({"deleted": 2}, {"user": "ann", "feedback": []})


def test_a_database_that_fails_is_no_acknowledgement(serving, model):
    with serving(model) as client:
        with client.service.store._engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE feedback")
        answer = client.post("/v1/feedback", {"user": "ann", "item": "i4", "liked": True})
    assert answer.status == 503
    assert "retry-after" in answer.headers


def test_logs_and_metrics_tell_nothing_personal(serving, model, caplog):
    caplog.set_level(logging.INFO)
    history = [{"title": "My Secret Film", "liked": True}]
    with serving(model, Settings(token=TOKEN)) as client:
        right = {"Authorization": f"Bearer {TOKEN}"}
        client.post("/v1/rank", {"history": history}, **right)
        client.post("/v1/feedback", {"user": "secret-ann", "item": "i4", "liked": True}, **right)
        client.get("/v1/users/secret-ann/feedback", **right)
        client.get("/v1/items?q=secret", **right)
        client.get("/secret/path")
        told = client.get("/metrics", **right).text
    lines = [JsonLines().format(record) for record in caplog.records]
    requests = [json.loads(line) for line in lines if '"request"' in line]
    routes = [line["route"] for line in requests]
    assert routes.count("/v1/users/{user}/feedback") == 1
    assert [line["status"] for line in requests[:2]] == [200, 201]
    for private in ("secret", "Secret", TOKEN, "127.0.0.1", "i4"):
        assert not [line for line in [*lines, told] if private in line]


def test_an_exception_is_logged_without_its_text():
    try:
        raise RuntimeError("ann likes i4")
    except RuntimeError as error:
        record = logging.LogRecord(
            "x", 40, "f", 1, "failed", (), (type(error), error, error.__traceback__)
        )
    line = JsonLines().format(record)
    assert json.loads(line)["exception"] == "RuntimeError"
    assert "test_an_exception" in line
    assert "ann" not in line


def test_the_api_describes_itself_with_examples(serving, model):
    with serving(model) as client:
        described = client.get("/openapi.json").json
    assert {"/v1/score", "/v1/rank", "/v1/feedback", "/v1/items"} <= described["paths"].keys()
    history = described["components"]["schemas"]["RankRequest"]["properties"]["history"]
    assert history["examples"]


def test_answers_carry_a_strict_policy(serving, model):
    with serving(model) as client:
        for path in ("/", "/v1/items", "/nowhere"):
            headers = client.get(path).headers
            assert headers["content-security-policy"].startswith("default-src 'none'")
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
