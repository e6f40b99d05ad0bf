import numpy as np
import pytest

from tallrec.evaluate import METRICS, Evaluation, System, compare, summarize, to_markdown
from tallrec.evaluate.answers import auc_with_coin, tied_pairs

RNG = np.random.default_rng(0)
LABELS = RNG.random(40) < 0.4
USERS = RNG.integers(5, size=40)
SCORES = np.where(RNG.random(40) < 0.2, np.nan, RNG.integers(-2, 3, size=40).astype(float))
COUNTS = {
    "asked": 40,
    "said_yes": 20,
    "said_no": 12,
    "refused": 5,
    "unparseable": 3,
    "by_log_probability": 30,
    "by_text": 2,
    "bounded": 1,
    "prompt_tokens": 12_345,
    "completion_tokens": 80,
    "cost": 0.5,
    "retries": 4,
}


def pairs():
    return [(a, b) for a in np.flatnonzero(LABELS) for b in np.flatnonzero(~LABELS)]


def test_ties_are_counted_by_pairs():
    values = [SCORES[a] == SCORES[b] for a, b in pairs() if np.isfinite(SCORES[[a, b]]).all()]
    assert tied_pairs(LABELS, SCORES) == pytest.approx(np.mean(values))


def test_a_coin_ranks_what_has_no_score():
    values = [
        0.5 if np.isnan(SCORES[[a, b]]).any() else (np.sign(SCORES[a] - SCORES[b]) + 1) / 2
        for a, b in pairs()
    ]
    assert auc_with_coin(LABELS, SCORES) == pytest.approx(np.mean(values))
    complete = np.nan_to_num(SCORES)
    everyone = METRICS["auc"](LABELS, complete, USERS)
    assert auc_with_coin(LABELS, complete) == pytest.approx(everyone)


def test_who_answers_nothing_is_a_coin():
    nothing = np.full(40, np.nan)
    assert auc_with_coin(LABELS, nothing) == 0.5
    assert np.isnan(tied_pairs(LABELS, nothing))
    assert np.isnan(auc_with_coin(np.ones(40, dtype=bool), SCORES))


@pytest.fixture
def result():
    systems = (
        System("asked", "in-context", np.stack([SCORES, -SCORES]), COUNTS),
        System("silent", "in-context", np.full((1, 40), np.nan), COUNTS | {"cost": None}),
        System("like-rate", "counting", RNG.normal(size=(1, 40))),
    )
    return summarize(Evaluation(LABELS, USERS, systems, {"test_hash": "1"}), resamples=50)


def test_a_report_shows_how_systems_answered(result):
    page = to_markdown(result)
    assert "| answers | asked | silent |" in page
    assert "| refused | 5 | 5 |" in page
    assert "| said Yes / No | 20 / 12 | 20 / 12 |" in page
    assert "| tokens read / written | 12,345 / 80 | 12,345 / 80 |" in page
    assert "| cost | 0.5000 | n/a |" in page
    assert "| AUC, unscored by a coin | 0.500 | 0.500 |" in page
    assert f"could not score {np.isnan(SCORES).sum()} of 40 samples" in page
    answers = result["systems"][0]["answers"]
    scored = SCORES[~np.isnan(SCORES)]
    assert answers["yes_share"] == pytest.approx(np.mean(np.concatenate([scored, -scored]) > 0))
    assert "answers" not in result["systems"][2]


def test_a_comparison_keeps_the_answers_of_each_run(result):
    merged = compare({"one": result, "two": result})
    asked = [system["name"] for system in merged["systems"] if "answers" in system]
    assert asked == ["one: asked", "one: silent", "two: asked", "two: silent"]
    assert "| answers | one: asked |" in to_markdown(merged)
