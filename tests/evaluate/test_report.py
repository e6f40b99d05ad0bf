import json
from dataclasses import replace

import numpy as np
import pytest

from tallrec.evaluate import COUNTING, METRICS, MODEL, Evaluation, System, bootstrap, summarize
from tests.evaluate.cases import make_evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def result(evaluation):
    return summarize(evaluation, resamples=300)


def with_scores(evaluation, name, scores):
    systems = tuple(
        replace(system, scores=scores) if system.name == name else system
        for system in evaluation.systems
    )
    return replace(evaluation, systems=systems)


def test_result_is_plain_json(result):
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_metric_is_the_mean_over_seeds_with_their_spread(evaluation, result):
    scores = evaluation.systems[0].scores
    for name, metric in METRICS.items():
        values = [metric(evaluation.labels, row, evaluation.users) for row in scores]
        figures = result["systems"][0]["metrics"][name]
        assert figures["per_seed"] == pytest.approx(values)
        assert figures["mean"] == pytest.approx(np.mean(values))
        assert figures["sd"] == pytest.approx(np.std(values, ddof=1))
    assert result["systems"][1]["metrics"]["auc"]["sd"] is None


def test_the_interval_is_that_of_the_mean_over_seeds(evaluation, result):
    _, users = np.unique(evaluation.users, return_inverse=True)
    statistics = [
        METRICS["auc"].by_user_weight(evaluation.labels, row, users)
        for row in evaluation.systems[0].scores
    ]
    values = bootstrap.resample_users(statistics, users.max() + 1, len(users), 300, seed=0)
    low, high = np.quantile(values.mean(axis=0), [0.025, 0.975])
    figures = result["systems"][0]["metrics"]["auc"]
    assert (figures["low"], figures["high"]) == pytest.approx((low, high))
    assert low < figures["mean"] < high


def test_facts_of_the_test_samples():
    evaluation = Evaluation(
        np.array([True, False, True, True]),
        np.array([9, 9, 4, 4]),
        (System("m", MODEL, np.zeros((1, 4))),),
    )
    result = summarize(evaluation, resamples=50)
    assert result["data"] == {"rows": 4, "users": 2, "users_with_both": 1, "like_share": 0.75}
    assert result["chance"]["auc"] == result["chance"]["gauc"] == 0.5
    assert result["chance"]["log_loss"] == pytest.approx(np.log(2))
    assert result["chance"]["ece"] == pytest.approx(0.25)


def test_every_model_meets_the_hardest_count_of_each_metric(evaluation):
    # Right within every user, and wrong about who is generous.
    within = 0.1 * evaluation.labels - evaluation.systems[1].scores
    hardest = summarize(with_scores(evaluation, "item mean", within), resamples=100)
    assert hardest["best_counting"] == {"auc": "like-rate", "gauc": "item mean"}
    assert [(d["system"], d["metric"], d["baseline"]) for d in hardest["differences"]] == [
        ("tuned", "auc", "like-rate"),
        ("tuned", "gauc", "item mean"),
    ]


def test_a_better_model_gets_no_warning(result):
    for d in result["differences"]:
        assert d["verdict"] == "better"
        assert 0 < d["low"] < d["difference"] < d["high"]
        assert d["share_not_positive"] == 0
        assert d["p"] == pytest.approx(2 / 301)
        assert d["rows"] == 800
    assert result["warnings"] == []


def test_a_model_worse_than_counting_is_called_so(evaluation):
    result = summarize(with_scores(evaluation, "tuned", np.zeros((1, 800))), resamples=300)
    assert result["differences"][0]["verdict"] == "worse"
    assert result["differences"][0]["share_not_positive"] == 1
    assert (
        "tuned does not beat the best counting baseline (like-rate) in AUC"
        in (result["warnings"][0])
    )
    assert "(worse)" in result["warnings"][0]


def test_a_model_equal_to_counting_is_not_distinguishable(evaluation):
    same = evaluation.systems[1].scores
    result = summarize(with_scores(evaluation, "tuned", np.repeat(same, 2, axis=0)), resamples=300)
    auc = result["differences"][0]
    assert auc["difference"] == auc["low"] == auc["high"] == 0
    assert auc["p"] == 1
    assert auc["verdict"] == "not distinguishable"
    assert "does not beat" in result["warnings"][0]
    assert "(not distinguishable)" in result["warnings"][0]


def test_a_small_gain_is_not_shown(evaluation):
    rng = np.random.default_rng(0)
    scores = evaluation.systems[1].scores + 0.02 * evaluation.labels + 0.5 * rng.normal(size=800)
    result = summarize(with_scores(evaluation, "tuned", scores), resamples=300)
    assert result["differences"][0]["verdict"] != "better"
    assert any("AUC" in text for text in result["warnings"])


def test_few_users_are_warned_of():
    result = summarize(make_evaluation(users=16), resamples=50)
    assert result["warnings"][0].startswith("Only 16 test users")


def test_unscored_samples_are_counted_and_left_out_of_the_pair(evaluation):
    scores = evaluation.systems[0].scores.copy()
    scores[0, :5] = np.nan
    scores[1, 3:10] = np.nan
    evaluation = with_scores(evaluation, "tuned", scores)
    result = summarize(evaluation, resamples=50)
    assert result["systems"][0]["unscored"] == [5, 7, 0]
    assert any(text.startswith("tuned could not score 7 of 800") for text in result["warnings"])
    auc = result["differences"][0]
    assert auc["rows"] == 790
    labels, users = evaluation.labels[10:], evaluation.users[10:]
    mine = np.mean([METRICS["auc"](labels, row[10:], users) for row in scores])
    theirs = METRICS["auc"](labels, evaluation.systems[1].scores[0, 10:], users)
    assert auc["difference"] == pytest.approx(mine - theirs)


def test_a_system_that_scores_nothing_has_no_figures(evaluation):
    result = summarize(with_scores(evaluation, "tuned", np.full((1, 800), np.nan)), resamples=50)
    figures = result["systems"][0]["metrics"]["auc"]
    assert figures["mean"] is figures["low"] is figures["high"] is None
    assert result["differences"][0]["verdict"] == "undefined"


@pytest.mark.parametrize(("label", "word"), [(True, "likes"), (False, "dislikes")])
def test_one_answer_only_leaves_auc_undefined(evaluation, label, word):
    result = summarize(replace(evaluation, labels=np.full(800, label)), resamples=50)
    assert result["systems"][0]["metrics"]["auc"]["mean"] is None
    assert result["systems"][0]["metrics"]["log_loss"]["mean"] is not None
    assert result["chance"]["auc"] is None
    assert result["best_counting"] == {}
    assert result["differences"] == []
    assert f"The test samples are all {word}: AUC and GAUC are undefined." in result["warnings"]


def test_no_user_with_both_answers_leaves_gauc_undefined(evaluation):
    labels = evaluation.users % 2 == 0
    result = summarize(replace(evaluation, labels=labels), resamples=50)
    assert result["systems"][0]["metrics"]["gauc"]["mean"] is None
    assert any("GAUC is undefined" in text for text in result["warnings"])


def test_resamples_without_a_class_are_dropped_and_told():
    labels = np.array([True, True, False])
    scores = np.array([[1.0, 0.0, 0.5]])
    evaluation = Evaluation(labels, np.array([0, 1, 2]), (System("c", COUNTING, scores),))
    result = summarize(evaluation, resamples=200)
    dropped = result["systems"][0]["metrics"]["auc"]["dropped"]
    # A third of the resamples misses the only dislike: (2/3)^3, and (1/3)^3 has nothing else.
    assert dropped == pytest.approx(200 * (8 + 1) / 27, abs=25)
    assert any(f"Up to {dropped} of 200 resamples" in text for text in result["warnings"])


def test_without_counting_there_is_a_warning(evaluation):
    result = summarize(replace(evaluation, systems=evaluation.systems[:1]), resamples=50)
    assert result["differences"] == []
    assert any("No counting baseline" in text for text in result["warnings"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(0, dtype=bool)}, "no test samples"),
        ({"users": np.zeros(3, dtype=int)}, "800 labels need 800 user codes"),
        ({"systems": (System("a", MODEL, np.zeros(800)),)}, r"'a' must have the shape \(seeds, 80"),
        ({"systems": (System("a", MODEL, np.zeros((0, 800))),)}, "'a' must have the shape"),
        ({"systems": (System("a", MODEL, np.full((1, 800), np.inf)),)}, "'a' gave infinite"),
        ({"systems": (System("a", MODEL, np.zeros((1, 800))),) * 2}, "two systems are named 'a'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(evaluation, change, message):
    with pytest.raises(ValueError, match=message):
        replace(evaluation, **change)
