"""A run as a recommender: by user, by titles, filtered and explained."""

import numpy as np
import pytest

from tallrec.data.samples import in_blocks
from tallrec.steps.recommender import Recommender
from tallrec.steps.score import seed_scorer
from tallrec.steps.wishes import candidates_of, history_of_titles
from tests.planted import planted_splits

SPLITS = planted_splits(users=24)
HISTORY = [("i1", True), ("i2", False), ("i3", True), ("i4", True)]


def silent(_line):
    """Says nothing."""


@pytest.fixture(scope="module")
def recommender(planted_run):
    return Recommender.load(planted_run.path, say=silent)


def test_a_users_scores_are_those_of_the_data(planted_run, recommender, backbone):
    sample = in_blocks(SPLITS.test[-1:], 4)
    history = recommender.history_of(sample[0].user)[:-1]
    (mine,) = recommender.score(history, [sample[0].target.id])
    (of_data,) = seed_scorer(planted_run, backbone, 0, "movie")(sample)
    assert mine == pytest.approx(of_data, abs=1e-4)


def test_each_seed_can_be_loaded(planted_run, recommender):
    other = Recommender.load(planted_run.path, seed=1, say=silent)
    assert other.score(HISTORY, ["i9"]) != recommender.score(HISTORY, ["i9"])
    with pytest.raises(ValueError, match="has the seeds 0, 1; got 2"):
        Recommender.load(planted_run.path, seed=2, say=silent)


def test_the_best_unseen_items_come_first(recommender):
    best = recommender.rank(HISTORY, k=5)
    unseen = [item for item in recommender.items["item"] if item not in dict(HISTORY)]
    scores = recommender.score(HISTORY, unseen)
    assert best["log_odds"].to_list() == pytest.approx(sorted(scores)[:-6:-1], abs=1e-4)
    assert best["item"][0] == unseen[int(np.argmax(scores))]
    np.testing.assert_allclose(best["probability"], 1 / (1 + np.exp(-best["log_odds"].to_numpy())))


def test_candidates_are_asked_once_and_seen_ones_not_at_all(recommender):
    best = recommender.rank(HISTORY, ["i9", "i1", "i8", "i9"])
    assert sorted(best["item"]) == ["i8", "i9"]
    with pytest.raises(ValueError, match="all 2 candidates are in the history"):
        recommender.rank(HISTORY, ["i1", "i2"])


def test_someone_without_a_history_gets_a_ranking(recommender):
    assert recommender.rank([], k=3).height == 3


def test_effects_are_what_leaving_an_item_out_changes(recommender):
    effects = recommender.explain(HISTORY, "i9", "i6")
    assert effects["target"].to_list() == ["i9"] * 4 + ["i6"] * 4
    for target in ("i9", "i6"):
        (whole,) = recommender.score(HISTORY, [target])
        found = dict(effects.filter(target=target).select("item", "effect").rows())
        for i, (item, _) in enumerate(HISTORY):
            (without,) = recommender.score(HISTORY[:i] + HISTORY[i + 1 :], [target])
            assert found[item] == pytest.approx(whole - without, abs=1e-4)
        assert np.all(np.diff(np.abs(list(found.values()))) <= 0)


def test_only_what_the_model_sees_is_explained(recommender):
    history = recommender.history_of("u3")
    assert len(history) == 20
    effects = recommender.explain(history, "i21")
    assert set(effects["item"]) == {item for item, _ in history[12:]}


def test_an_item_of_the_history_is_no_question(recommender):
    with pytest.raises(ValueError, match="item 'i1' is in the history"):
        recommender.score(HISTORY, ["i9", "i1"])
    with pytest.raises(ValueError, match="item 'i1' is in the history"):
        recommender.explain(HISTORY, "i1")
    with pytest.raises(ValueError, match="no item 'x' in the catalogue"):
        recommender.rank([("x", True)])


def test_titles_are_found(recommender):
    assert recommender.match("sea 7").id == "i7"
    assert recommender.find("hill", limit=1)[0].item.title.startswith("Hill")


def test_closing_gives_the_backbone_back(planted_run, backbone):
    for _ in range(2):
        Recommender.load(planted_run.path, backbone=backbone, say=silent).close()


def test_titles_become_a_history_likes_first(recommender):
    history = history_of_titles(recommender, ["sea 7", "Hill 2; see 9"], ["hill 4"])
    assert history == [("i7", True), ("i2", True), ("i9", True), ("i4", False)]
    with pytest.raises(ValueError, match="'Hill 4' means 'Hill 4', which is given twice"):
        history_of_titles(recommender, ["hill 4"], ["Hill 4"])
    with pytest.raises(ValueError, match="no title is like 'mountain'; the nearest: "):
        history_of_titles(recommender, ["mountain"], [])


def test_candidates_are_filtered(recommender, tmp_path):
    (tmp_path / "some").write_text("i3\nhill 12\n\ni1\ni5\n", encoding="utf-8")
    (tmp_path / "none").write_text("Sea 1\n", encoding="utf-8")
    listed = {"listed": tmp_path / "some", "excluded": tmp_path / "none"}
    assert candidates_of(recommender, **listed) == ["i3", "i12", "i5"]
    assert candidates_of(recommender, only=r"^sea \d$", **listed) == ["i3", "i5"]
    assert len(candidates_of(recommender)) == recommender.items.height
    with pytest.raises(ValueError, match="no item passes"):
        candidates_of(recommender, only="dune")
    with pytest.raises(ValueError, match="--only takes a regular expression"):
        candidates_of(recommender, only="(")
    (tmp_path / "none").write_text("i1\nmountain\n", encoding="utf-8")
    with pytest.raises(ValueError, match="none, line 2: no title is like 'mountain'"):
        candidates_of(recommender, **listed)
