import json

import pytest

from tallrec.evaluate import compare, summarize, to_markdown
from tests.evaluate.cases import make_evaluation


def run(seed=0, shots=64, test_hash="same", **options):
    metadata = {"test_hash": test_hash, "shots": shots}
    return summarize(make_evaluation(seed=seed, metadata=metadata, **options), resamples=50)


@pytest.fixture(scope="module")
def results():
    # Same samples and like-rate; the item means are drawn after the model's noise and so differ.
    return {"few": run(seeds=1), "many": run(seeds=3)}


def test_models_are_named_by_their_runs_and_shared_counts_shown_once(results):
    comparison = compare(results)
    assert [system["name"] for system in comparison["systems"]] == [
        "few",
        "many",
        "like-rate",
        "item mean (few)",
        "item mean (many)",
    ]
    assert comparison["systems"][1]["metrics"] == results["many"]["systems"][0]["metrics"]


def test_differences_name_what_the_table_names(results):
    comparison = compare(results)
    names = {system["name"] for system in comparison["systems"]}
    assert len(comparison["differences"]) == 4
    for difference in comparison["differences"]:
        assert {difference["system"], difference["baseline"]} <= names
    assert set(comparison["best_counting"].values()) <= names


def test_several_models_of_a_run_keep_their_names(results):
    two = run()
    two["systems"].append({**two["systems"][0], "name": "other"})
    names = [system["name"] for system in compare({"a": two, "b": results["few"]})["systems"]]
    assert names[:3] == ["a: tuned", "a: other", "b"]


def test_warnings_are_told_once_or_with_their_run():
    results = {"good": run(users=16), "poor": run(users=16, skill=-2.0)}
    warnings = compare(results)["warnings"]
    assert sum("Only 16 test users" in text for text in warnings) == 1
    assert any(text.startswith("poor: tuned does not beat") for text in warnings)
    assert not any(text.startswith("poor: Only") for text in warnings)


def test_comparison_renders_like_a_result(results):
    comparison = compare(results)
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison
    page = to_markdown(comparison)
    assert "| few | " in page
    assert "- runs:\n  - few:\n    - test_hash: same\n    - shots: 64\n" in page


def test_different_test_samples_are_refused(results):
    with pytest.raises(ValueError, match="'few' and 'other' were evaluated on different"):
        compare({**results, "other": run(test_hash="another")})


def test_a_run_without_a_test_hash_is_refused(results):
    unknown = run()
    del unknown["metadata"]["test_hash"]
    with pytest.raises(ValueError, match="'unknown' does not say which test samples"):
        compare({**results, "unknown": unknown})


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no run to compare"):
        compare({})
