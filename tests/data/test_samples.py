"""Which events become questions."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tallrec.data.samples import (
    build_samples,
    full_data,
    in_blocks,
    positions_in_group,
    random_targets,
)
from tests.data.interactions import dataset, diary
from tests.planted import planted_splits


def summary(samples):
    """(user, history as likes by item, target, liked) of each sample."""
    return [
        (s.user, [(item.id, liked) for item, liked in s.history], s.target.id, s.liked)
        for s in samples
    ]


def test_every_event_with_enough_before_it_is_a_question():
    samples = build_samples(dataset(*diary("u", 4)), history=2)
    assert summary(samples) == [
        ("u", [("i0", False), ("i1", True)], "i2", False),
        ("u", [("i1", True), ("i2", False)], "i3", True),
    ]
    assert samples.rows["timestamp"].to_list() == [2, 3]


def test_users_in_order_of_first_appearance_events_in_order_of_time():
    samples = build_samples(
        dataset(
            ("b", "x", 5, 30),
            ("a", "x", 1, 5),
            ("b", "y", 1, 10),
            ("a", "y", 5, 4),
            ("b", "z", 5, 20),
        ),
        history=1,
    )
    assert summary(samples) == [
        ("b", [("y", False)], "z", True),
        ("b", [("z", True)], "x", True),
        ("a", [("y", True)], "x", False),
    ]


def test_events_of_the_same_moment_stay_in_the_order_of_the_file():
    events = [("u", item, 5, 7) for item in "dacb"] + [("u", "e", 5, 6)]
    samples = build_samples(dataset(*events), history=4)
    assert [item.id for item, _ in samples[0].history] == ["e", "d", "a", "c"]


def test_without_timestamps_the_order_of_the_rows_counts():
    events = [("v", "x", 5), ("u", "b", 5), ("v", "y", 5), ("u", "a", 1)]
    samples = build_samples(dataset(*events), history=1)
    assert summary(samples) == [
        ("v", [("x", True)], "y", True),
        ("u", [("b", True)], "a", False),
    ]
    assert samples.rows["timestamp"].null_count() == 2


def test_shorter_histories_where_they_are_asked_for():
    samples = build_samples(dataset(*diary("u", 4)), history=2, min_history=0)
    assert [len(s.history) for s in samples] == [0, 1, 2, 2]
    assert [s.target.id for s in samples] == ["i0", "i1", "i2", "i3"]


def test_a_history_never_reaches_into_another_user():
    samples = build_samples(dataset(*diary("u", 3), *diary("v", 3)), history=2, min_history=0)
    assert [len(s.history) for s in samples] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("like_above", "likes"), [(3, [False, True]), (3.5, [False, True]), (4, 2 * [False])]
)
def test_a_like_is_a_rating_above_the_threshold(like_above, likes):
    events = [("u", "a", 5, 0), ("u", "b", 3, 1), ("u", "c", 4, 2)]
    samples = build_samples(dataset(*events), history=1, like_above=like_above)
    assert [s.liked for s in samples] == likes


@pytest.mark.parametrize(
    "options", [{"history": 0}, {"history": 2, "min_history": 3}, {"min_history": -1}]
)
def test_histories_out_of_range(options):
    with pytest.raises(ValueError, match="history must be at least 1 and min_history between"):
        build_samples(dataset(*diary("u", 4)), **options)


@pytest.mark.parametrize(
    ("block", "starts"), [(1, [0, 0, 0, 1, 2, 3, 4]), (3, [0, 0, 0, 0, 0, 3, 3])]
)
def test_histories_begin_where_a_block_of_their_user_begins(block, starts):
    both = dataset(*diary("v", 4), *diary("u", 7))
    samples = in_blocks(build_samples(both, history=2, min_history=0), block)
    own = samples.spans[4:] - 4
    assert own.tolist() == [[start, stop] for stop, start in enumerate(starts)]


def test_a_block_of_no_events():
    with pytest.raises(ValueError, match="block must be at least 1; got 0"):
        in_blocks(build_samples(dataset(*diary("u", 4)), history=2), 0)


def test_too_few_events_name_the_longest_history():
    with pytest.raises(ValueError, match=r"more than 10 interactions \(the most anyone has is 4\)"):
        build_samples(dataset(*diary("u", 4), *diary("v", 2)))


@given(st.lists(st.integers(0, 3), max_size=20))
def test_positions_in_group(codes):
    expected = []
    for i, code in enumerate(codes):
        expected.append(expected[-1] + 1 if i and codes[i - 1] == code else 0)
    assert positions_in_group(pl.Series(codes, dtype=pl.Int64)).tolist() == expected


EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uvw"), st.sampled_from("abcd"), st.integers(1, 5), st.integers(0, 5)
    ),
    min_size=1,
    max_size=30,
)


@given(EVENTS, st.integers(1, 4))
def test_samples_are_what_plain_python_says(events, history):
    expected = []
    for user in dict.fromkeys(event[0] for event in events):
        own = sorted((event for event in events if event[0] == user), key=lambda event: event[3])
        for i in range(1, len(own)):
            seen = own[max(0, i - history) : i]
            expected.append((user, [(e[1], e[2] > 3) for e in seen], own[i][1], own[i][2] > 3))
    if expected:
        samples = build_samples(dataset(*events), history=history, min_history=1)
        assert summary(samples) == expected


def test_full_data_has_the_users_of_no_part_and_of_no_question_too():
    splits = planted_splits(users=8)
    everything = full_data(splits, splits.test, history=8, min_history=8)
    assert summary(everything) == summary(splits.train)
    later = replace(splits, train=splits.train[12 * 3 :])
    everything = full_data(later, splits.test, history=8, min_history=8)
    assert summary(everything) == summary(splits.train[12 * 3 :]) + summary(splits.train[: 12 * 3])
    asked = splits.train[: 12 * 3]  # a part of another folder
    assert summary(full_data(later, asked, history=8, min_history=8)) == summary(later.train)


LIBRARIES = st.lists(st.integers(1, 14), min_size=1, max_size=12)  # how many books each user has


def library(sizes):
    """Users in mixed rows, with their own numbers of books; b0, b3, ... are rated 9, others 0."""
    events = [
        (f"u{user}", f"b{book}", 0 if book % 3 else 9)
        for user, size in enumerate(sizes)
        for book in range(size)
    ]
    return dataset(*sorted(events, key=lambda event: event[1]))


@given(LIBRARIES, st.integers(1, 10), st.integers(0, 3))
def test_a_random_target_is_one_of_each_user_with_enough_events(sizes, history, seed):
    enough = [user for user, size in enumerate(sizes) if size > 1]
    assume(enough)
    samples = random_targets(
        library(sizes), history=history, min_history=1, like_above=5, seed=seed
    )
    assert sorted(s.user for s in samples) == sorted(f"u{user}" for user in enough)
    for sample in samples:
        size = sizes[int(sample.user[1:])]
        shown = [item.id for item, _ in sample.history]
        books = [*shown, sample.target.id]
        assert len(shown) == min(history, size - 1)
        assert len(set(books)) == len(books)
        assert set(books) <= {f"b{book}" for book in range(size)}
        for item, liked in (*sample.history, (sample.target, sample.liked)):
            assert liked == (int(item.id[1:]) % 3 == 0)


def test_the_books_of_the_paper_need_more_than_three_ratings():
    samples = random_targets(library([3, 4, 12]))
    assert {s.user: len(s.history) for s in samples} == {"u1": 3, "u2": 10}


def test_random_targets_are_seeded():
    books = library([12] * 20)
    first, same, other = (summary(random_targets(books, seed=seed)) for seed in (0, 0, 1))
    assert first == same
    assert first != other


def test_every_place_in_a_users_list_is_a_target_about_as_often():
    """The released code shuffled each list with the same seed: one place, for lists of one length.

    Counts over 2,000 users are within four standard deviations of the binomial's mean.
    """
    n, users = 5, 2000
    samples = random_targets(library([n] * users), history=2, min_history=1)
    for books in ([s.target.id for s in samples], [s.history[0][0].id for s in samples]):
        counts = np.bincount([int(book[1:]) for book in books], minlength=n)
        assert np.abs(counts - users / n).max() < 4 * np.sqrt(users / n * (1 - 1 / n))


@pytest.mark.parametrize(("border", "liked"), [(None, [False, True]), (8, [False, False])])
def test_a_data_set_has_its_own_border_of_likes(border, liked):
    books = replace(dataset(("u", "a", 9), ("u", "b", 5), ("u", "c", 6)), like_above=5.0)
    assert [s.liked for s in build_samples(books, history=1, like_above=border)] == liked
    (sample,) = random_targets(books, history=2, min_history=2, like_above=border)
    likes = {item.id: like for item, like in (*sample.history, (sample.target, sample.liked))}
    assert likes == {"a": True, "b": False, "c": border is None}
