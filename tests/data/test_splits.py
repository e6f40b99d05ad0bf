"""Parts of the sizes asked for, that share no user, or no moment, or are the paper's very own."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tallrec.assets import fetch
from tallrec.data.movielens import read_movielens_100k
from tallrec.data.samples import build_samples
from tallrec.data.splits import SPLITS, split_paper, split_time, split_users
from tallrec.prompts.paper import paper_record
from tests.data.interactions import dataset, diary

SAMPLES = build_samples(
    dataset(*(event for u in range(20) for event in diary(f"u{u}", 12, start=u, step=7))), history=2
)
SHARES = st.tuples(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0.05, 1)).map(
    lambda weights: tuple(w / sum(weights) for w in weights)
)


def indices(samples):
    """The rows of `SAMPLES` (which all have different histories) that a part consists of."""
    place = {stop: i for i, stop in enumerate(SAMPLES.rows["stop"])}
    return [place[stop] for stop in samples.rows["stop"]]


def is_partition(splits):
    rows = [i for part in splits.parts().values() for i in indices(part)]
    return sorted(rows) == list(range(len(SAMPLES)))


def test_the_paper_split_is_the_last_rows_in_order():
    splits = split_paper(SAMPLES, sizes=(8, 3, 5))
    n = len(SAMPLES)
    assert indices(splits.train) == [*range(n - 16, n - 8)]
    assert indices(splits.valid) == [*range(n - 8, n - 5)]
    assert indices(splits.test) == [*range(n - 5, n)]


def test_the_paper_split_needs_ten_thousand_samples():
    with pytest.raises(ValueError, match="takes the last 10,000 samples, but there are 200: use"):
        split_paper(SAMPLES)


@given(SHARES, st.integers(0, 5))
def test_users_are_in_one_part_only(shares, seed):
    splits = split_users(SAMPLES, seed=seed, shares=shares)
    users = [set(part.users.tolist()) for part in splits.parts().values()]
    assert sum(map(len, users)) == len(set.union(*users)) == 20
    assert min(map(len, users)) >= 1
    assert is_partition(splits)
    for part in splits.parts().values():
        assert indices(part) == sorted(indices(part))
    # As near to the shares as whole users allow, where none has to be given away.
    if all(20 * share > 2 for share in shares):
        assert np.abs(np.array([*map(len, users)]) - 20 * np.array(shares)).max() <= 1


def test_a_split_by_users_is_seeded():
    first, same, other = (indices(split_users(SAMPLES, seed=seed).test) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_three_users_are_one_each():
    samples = build_samples(dataset(*(e for u in "abc" for e in diary(u, 4))), history=2)
    assert [len(part) for part in split_users(samples).parts().values()] == [2, 2, 2]


def test_two_users_cannot_be_three_parts():
    samples = build_samples(dataset(*(e for u in "ab" for e in diary(u, 4))), history=2)
    with pytest.raises(ValueError, match="needs at least 3 users with samples; got 2"):
        split_users(samples)


@pytest.mark.parametrize("split", [split_users, split_time])
@pytest.mark.parametrize("shares", [(0.8, 0.2, 0.0), (0.5, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_shares_that_are_none(split, shares):
    with pytest.raises(ValueError, match="three positive numbers that sum to 1"):
        split(SAMPLES, shares=shares)


TIMED = st.lists(
    st.tuples(st.sampled_from("uvw"), st.just("x"), st.integers(1, 5), st.integers(0, 30)),
    min_size=6,
    max_size=60,
)


@given(TIMED, SHARES)
def test_nothing_of_a_later_part_is_before_the_end_of_an_earlier_one(events, shares):
    try:
        samples = build_samples(dataset(*events), history=1)
        splits = split_time(samples, shares=shares)
    except ValueError:  # too few events, or too many of them at one moment
        assume(False)
    train, valid, test = (part.rows["timestamp"] for part in splits.parts().values())
    assert train.max() < valid.min()
    assert valid.max() < test.min()
    assert len(train) + len(valid) + len(test) == len(samples)
    # What a question shows is never later than what it asks.
    for part in splits.parts().values():
        seen = part.events["timestamp"].to_numpy()[part.spans[:, 1] - 1]
        assert (seen <= part.rows["timestamp"].to_numpy()).all()


def test_a_split_by_time_has_the_shares_where_moments_differ():
    splits = split_time(SAMPLES)
    assert [len(part) for part in splits.parts().values()] == pytest.approx([160, 20, 20], abs=4)
    assert is_partition(splits)


def test_a_split_by_time_needs_timestamps():
    timeless = [(user, item, rating) for user, item, rating, _ in diary("u", 12)]
    samples = build_samples(dataset(*timeless), history=2)
    with pytest.raises(ValueError, match="10 of 10 samples have none: give --timestamp, or use"):
        split_time(samples)


def test_a_split_by_time_needs_three_moments():
    samples = build_samples(dataset(*diary("u", 12, step=0)), history=2)
    with pytest.raises(ValueError, match="needs interactions at three or more moments"):
        split_time(samples)


def test_the_names():
    assert {"paper": split_paper, "users": split_users, "time": split_time} == SPLITS


@pytest.mark.slow
def test_the_papers_movie_files_byte_for_byte():
    """Sizes and SHA-256 of the released train, valid and test files."""
    splits = split_paper(build_samples(read_movielens_100k(fetch("movielens-100k"))))
    files = {
        name: json.dumps([paper_record(s, "movie") for s in part], indent=4).encode()
        for name, part in splits.parts().items()
    }
    assert {
        name: (len(file), hashlib.sha256(file).hexdigest()) for name, file in files.items()
    } == {
        "train": (4931699, "460a86393450916596057967c7672c909edc9e73c7f61571c6a274659ffbdc53"),
        "valid": (628187, "d4aa0c005868aef9b8a85583db946662a2be9c2e0e09f810fe3a7ad31d89274f"),
        "test": (612555, "474e02cde467c8c7001168a4a390a581217edcd8f4726c39aa88c9aa37c54d5e"),
    }
    assert [len(np.unique(part.users)) for part in (splits.valid, splits.test)] == [14, 16]
