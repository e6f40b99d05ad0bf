"""In-context learning, asked of llama.cpp's server through a proxy that spoils answers."""

import json
import math
import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest

from tallrec.assets import fetch
from tallrec.baselines.endpoint import OPENAI, Client, Endpoint, first_options, without_refused
from tallrec.baselines.in_context import InContextScorer, ask_all, count_answers
from tallrec.baselines.journal import Journal
from tallrec.baselines.patience import RateLimit
from tallrec.baselines.replies import PARSED_LOG_ODDS, interpret
from tallrec.llm.backbone import load_backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.prompts import get_template
from tallrec.prompts.answers import resolve_answers
from tallrec.prompts.in_context import with_examples
from tests.baselines.endpoints import KEY, KEY_VARIABLE, few_questions, llama_server
from tests.baselines.faulty_proxy import proxy_of
from tests.planted import planted_splits

QUESTIONS = few_questions()


@pytest.fixture(scope="module")
def proxy():
    with llama_server() as upstream, proxy_of(upstream) as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch, proxy):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    proxy.forget()


@pytest.fixture(scope="module")
def undisturbed(proxy, tmp_path_factory):
    """The scores of the questions when nothing goes wrong."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        return scorer_at(proxy, tmp_path_factory.mktemp("undisturbed"))(QUESTIONS)


def scorer_at(proxy, folder, template="timeline", examples=(), **options):
    endpoint = Endpoint(
        **({"model": "smollm2", "base_url": proxy.url, "key_variable": KEY_VARIABLE} | options)
    )
    return InContextScorer(
        Client(endpoint),
        Journal(folder / "answers.jsonl"),
        with_examples(get_template(template), examples),
        "movie",
    )


def logged(folder):
    return (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()


def test_every_question_is_scored_by_its_log_probabilities(proxy, tmp_path):
    scorer = scorer_at(proxy, tmp_path)
    scores = scorer(QUESTIONS)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) == len(QUESTIONS)
    counts = count_answers(scorer.client.endpoint, scorer.replies(QUESTIONS))
    assert counts["by_log_probability"] == counts["asked"] == len(QUESTIONS)
    assert counts["retries"] == 0
    usage = [reply.prompt_tokens for reply in scorer.replies(QUESTIONS)]
    assert counts["prompt_tokens"] == sum(usage) > 40 * len(QUESTIONS)
    assert counts["cost"] is None
    priced = replace(scorer.client.endpoint, price_in=2.0, price_out=10.0)
    cost = count_answers(priced, scorer.replies(QUESTIONS))["cost"]
    assert cost == pytest.approx((2 * sum(usage) + 10 * counts["completion_tokens"]) / 1e6)


@pytest.mark.slow
def test_a_server_and_a_local_backbone_read_the_same_prompt(proxy, tmp_path):
    smollm2 = load_backbone(fetch("smollm2-135m"), dtype="float32", device="cpu")
    examples = list(planted_splits(history=3).train[:2])
    remote = scorer_at(proxy, tmp_path, examples=examples, api="completions")
    local = LlmScorer(
        model=smollm2.model,
        tokenizer=smollm2.tokenizer,
        template=remote.template,
        answers=resolve_answers(smollm2.tokenizer, remote.template, "movie"),
        domain="movie",
        max_tokens=2048,
    )
    # The server computes with 8-bit activations, the backbone in float32.
    np.testing.assert_allclose(remote(QUESTIONS), local(QUESTIONS), atol=0.3)
    tokens = [len(row.prompt) for row in local.encode(QUESTIONS)]
    assert [reply.prompt_tokens for reply in remote.replies(QUESTIONS)] == tokens


@pytest.mark.parametrize(
    "fault", ["too_many", "broken", "hang_up", "cut", "garbage", "something_else"]
)
def test_a_fault_changes_no_score(proxy, tmp_path, undisturbed, fault):
    hit = set()

    def first_time_of_every_other(number, body):
        prompt = body["messages"][0]["content"]
        if prompt in hit or number % 2:
            return None
        hit.add(prompt)
        return fault

    proxy.forget(first_time_of_every_other)
    scorer = scorer_at(proxy, tmp_path)
    np.testing.assert_array_equal(scorer(QUESTIONS), undisturbed)
    assert hit
    assert len(proxy.whole) == len(logged(tmp_path)) == len(QUESTIONS)
    counts = count_answers(scorer.client.endpoint, scorer.replies(QUESTIONS))
    assert counts["retries"] == len(hit)


def test_a_server_that_hangs_is_asked_again(proxy, tmp_path, undisturbed):
    proxy.forget(lambda number, _body: "hang" if number == 2 else None)
    np.testing.assert_array_equal(scorer_at(proxy, tmp_path, timeout=2)(QUESTIONS), undisturbed)
    assert "hang" in [fault for *_, fault in proxy.requests]


def test_all_wait_as_long_as_one_is_told(proxy, tmp_path, undisturbed):
    proxy.forget(lambda number, _body: "too_many" if number in (1, 2) else None)
    scorer = scorer_at(proxy, tmp_path, concurrency=2)
    np.testing.assert_array_equal(scorer(QUESTIONS), undisturbed)
    assert sum(reply.retries for reply in scorer.replies(QUESTIONS)) == 2


def test_nothing_is_asked_twice(proxy, tmp_path, undisturbed):
    proxy.forget(lambda number, _body: "no_money" if number >= 3 else None)
    with pytest.raises(ValueError, match="exceeded your current quota"):
        scorer_at(proxy, tmp_path, concurrency=1)(QUESTIONS)
    kept = logged(tmp_path)
    assert len(kept) == 3
    proxy.forget()
    np.testing.assert_array_equal(scorer_at(proxy, tmp_path)(QUESTIONS), undisturbed)
    assert len(proxy.requests) == len(QUESTIONS) - 3
    assert logged(tmp_path)[:3] == kept
    proxy.forget()
    np.testing.assert_array_equal(scorer_at(proxy, tmp_path)(QUESTIONS), undisturbed)
    assert not proxy.requests


def test_the_same_question_is_asked_once(proxy, tmp_path):
    scores = scorer_at(proxy, tmp_path)(QUESTIONS[[1, 1, 0, 1]])
    assert scores[0] == scores[1] == scores[3] != scores[2]
    assert len(proxy.requests) == 2


def test_other_options_and_prompts_are_other_questions(proxy, tmp_path):
    scorer_at(proxy, tmp_path)(QUESTIONS[:1])
    for change in ({"model": "other"}, {"max_tokens": 1}, {"template": "paper"}):
        proxy.forget()
        scorer_at(proxy, tmp_path, **change)(QUESTIONS[:1])
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_without_log_probabilities_the_text_counts(proxy, tmp_path, api):
    proxy.forget(lambda _number, body: "no_logprobs" if "logprobs" in body else None)
    scorer = scorer_at(proxy, tmp_path, api=api)
    asked = QUESTIONS[:3]
    scores = scorer(asked)
    refused = [body for _, body, fault in proxy.requests if fault]
    assert len(refused) == 2  # 20 alternatives, 5, then never again
    assert len(proxy.whole) == len(asked)
    for score, reply in zip(scores, scorer.replies(asked), strict=True):
        wanted = {"yes": PARSED_LOG_ODDS, "no": -PARSED_LOG_ODDS}
        expected = wanted.get(interpret(reply).said, math.nan)
        np.testing.assert_equal(score, expected)
    counts = count_answers(scorer.client.endpoint, scorer.replies(asked))
    assert counts["by_log_probability"] == 0
    assert counts["retries"] == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no_model", "has no model 'smollm2', or no chat there .* The model `nothing` does"),
        ("no_money", "exceeded your current quota"),
        ("tell_key", f"does not take the key in {KEY_VARIABLE} .*401.*Bearer \\*\\*\\*"),
        ("garbage", "not usable as an OpenAI-compatible endpoint: it answers with '<html>Please"),
        ("broken", "could not answer, 2 times in a row .*500"),
        ("tomorrow", "refuses what smollm2 is asked .*429 - come back tomorrow"),
        ("hang_up", "nobody answers at http://127.0.0.1"),
    ],
)
def test_what_does_not_pass_is_one_sentence(proxy, tmp_path, fault, message):
    proxy.forget(lambda number, _body: fault if number >= 2 else None)
    with pytest.raises(ValueError, match=message) as raised:
        scorer_at(proxy, tmp_path, attempts=2, concurrency=1)(QUESTIONS)
    assert KEY not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(logged(tmp_path)) == 2


def test_a_wrong_key_is_refused_by_the_server_itself(proxy, tmp_path, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong")
    with pytest.raises(ValueError, match=f"does not take the key in {KEY_VARIABLE}") as raised:
        scorer_at(proxy, tmp_path)(QUESTIONS)
    assert "sk-wrong" not in str(raised.value)
    assert len(proxy.requests) == 1


def test_a_prompt_that_is_too_long_is_refused_by_the_server_itself(proxy, tmp_path):
    with pytest.raises(ValueError, match=r"refuses what smollm2 is asked .*context"):
        ask_all(scorer_at(proxy, tmp_path).client, Journal(tmp_path / "j"), ["long " * 3000])


def test_nobody_listening_is_said_at_once(tmp_path):
    scorer = InContextScorer(
        Client(Endpoint("m", "http://127.0.0.1:1/v1")),
        Journal(tmp_path / "answers.jsonl"),
        get_template("paper"),
        "movie",
    )
    with pytest.raises(ValueError, match=r"nobody answers at http://127\.0\.0\.1:1/v1"):
        scorer(QUESTIONS)


def test_openai_wants_a_key_and_nobody_else_is_sent_it(proxy, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="into the environment variable OPENAI_API_KEY"):
        scorer_at(proxy, tmp_path, base_url=OPENAI, key_variable=None)(QUESTIONS)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-of-openai")
    with pytest.raises(ValueError, match="does not take requests without a key"):
        scorer_at(proxy, tmp_path, key_variable=None)(QUESTIONS)
    scorer_at(proxy, tmp_path)(QUESTIONS[:1])
    headers = [headers for headers, *_ in proxy.requests]
    assert len(headers) == 2
    assert not any("of-openai" in text for text in headers)


def test_stopping_keeps_what_is_on_its_way(proxy, tmp_path):
    asked = threading.Event()
    scorer = scorer_at(proxy, tmp_path, concurrency=2)

    def stop_at_the_second(number, _body):
        if number == 1:
            scorer.client.stop()
            asked.set()

    proxy.forget(stop_at_the_second)
    with pytest.raises(CancelledError):
        scorer(QUESTIONS)
    assert asked.is_set()
    assert len(proxy.whole) == len(proxy.requests) == len(logged(tmp_path))
    assert 2 <= len(logged(tmp_path)) < len(QUESTIONS)


def test_requests_are_spaced():
    limit = RateLimit(600, threading.Event())
    moments = []
    for _ in range(4):
        limit.wait()
        moments.append(limit._next)
    assert np.diff(moments).min() >= 0.1 - 1e-9
    limit.pause(60)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(CancelledError):
        RateLimit(1, stopped).wait()


@pytest.mark.parametrize(
    ("api", "message", "wanted"),
    [
        ("chat", "top_logprobs must be at most 5", {"logprobs": True, "top_logprobs": 5}),
        ("completions", "logprobs must be at most 5", {"logprobs": 5}),
        ("chat", "'max_tokens' is not supported", {"max_completion_tokens": 16}),
        ("chat", "'temperature' does not support 0", {}),
    ],
)
def test_a_refused_option_gives_way(api, message, wanted):
    before = first_options(Endpoint("m", api=api))
    after = without_refused(before, message)
    assert after != before
    assert after.items() >= wanted.items()
    assert without_refused(after, "there is something else wrong") is None


def test_refused_log_probabilities_are_given_up_in_the_end():
    options = first_options(Endpoint("m"))
    for _ in range(2):
        options = without_refused(options, "logprobs are not for you")
    assert options == {"max_tokens": 16, "temperature": 0}
    assert without_refused(options, "logprobs are not for you") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "localhost:8080"}, "base_url must be such as"),
        ({"base_url": "https://me:sk-1@host/v1"}, "no user, password or query"),
        ({"base_url": "https://host/v1?key=sk-1"}, "no user, password or query"),
        ({"api": "responses"}, "api must be one of"),
        ({"concurrency": 0}, "concurrency must be above 0"),
        ({"requests_per_minute": -1}, "requests_per_minute must be above 0"),
        ({"price_in": 1.0}, "both prices"),
    ],
)
def test_a_wrong_endpoint_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Endpoint("m", **options)


def test_no_key_is_in_the_journal(proxy, tmp_path):
    scorer_at(proxy, tmp_path)(QUESTIONS)
    assert any(KEY in headers for headers, *_ in proxy.requests)
    text = (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    assert KEY not in text
    assert json.loads(text.splitlines()[0])["text"]
