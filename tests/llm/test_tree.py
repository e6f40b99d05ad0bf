"""A tree holds each distinct prefix once, and every token sees its ancestors and itself."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tallrec.llm.tree import build_tree, common_length, reading

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=20)
CHAIN = [[1] * n for n in range(1, 9)]
CATALOGUE = [[0] * 70 + [i, i, 3][: 1 + i % 3] for i in range(1, 40)]
LONG = [[0] * 400, [0] * 300 + [1] * 200, [0] * 5]


def seen_in(blocks):
    """What each query is given to look at, as numbers of `paths`."""
    seen = {}
    for block in blocks:
        for m in range(len(block.q_mq)):
            for i in np.flatnonzero(block.real_mq[m]):
                own = block.k_mk[m, : block.seen_mq[m, i]].tolist()
                assert int(block.q_mq[m, i]) not in seen
                seen[int(block.q_mq[m, i])] = sorted(block.shared_s.tolist() + own)
    return seen


def check(tree, rows, kept=()):
    ids = [*kept, *tree.ids_n.tolist()]
    depths = [*range(len(kept)), *tree.positions_n.tolist()]
    seen = {query + len(kept): keys for query, keys in seen_in(tree.blocks).items()}
    assert sorted(seen) == list(range(len(kept), len(ids)))
    for row, path in zip(rows, tree.paths, strict=True):
        assert [ids[i] for i in path] == row
        assert [depths[i] for i in path] == list(range(len(row)))
        for depth, token in enumerate(path.tolist()):
            if token >= len(kept):
                assert seen[token] == sorted(path[: depth + 1].tolist())


@given(ROWS)
@example(CHAIN)
@example(CATALOGUE)
@example(LONG)
def test_each_prefix_is_there_once_and_sees_its_ancestors(rows):
    tree = build_tree(rows)
    check(tree, rows)
    assert len(tree.ids_n) == len({tuple(row[:i]) for row in rows for i in range(1, len(row) + 1)})


@given(ROWS, st.integers(0, 12))
@example(CATALOGUE, 70)
@example(CATALOGUE, 30)
def test_kept_tokens_are_seen_and_not_there(rows, n_kept):
    kept = min(rows)[:-1][:n_kept]
    tree = build_tree(rows, kept)
    check(tree, rows, kept)
    prefixes = {tuple(row[:i]) for row in rows for i in range(1, len(row) + 1)}
    assert len(tree.ids_n) == len(prefixes - {tuple(kept[:i]) for i in range(n_kept + 1)})


@given(ROWS, st.integers(0, 12), st.sets(st.integers(0, 999), min_size=1))
@example(CATALOGUE, 30, {0, 1, 60})
@example(LONG, 0, {0, 5, 350, 399, 400, 599})
def test_what_is_read_sees_the_same(rows, n_kept, numbers):
    tree = build_tree(rows, min(rows)[:-1][:n_kept])
    read = sorted({number % len(tree.ids_n) for number in numbers})
    every, few = seen_in(tree.blocks), seen_in(reading(tree, torch.tensor(read)))
    assert few == {place: every[token] for place, token in enumerate(read)}


def test_what_a_catalogue_shares_is_looked_at_together():
    blocks = build_tree(CATALOGUE).blocks
    assert sum(len(block.q_mq) for block in blocks if len(block.shared_s) == 70) == 38
    assert len(blocks) < 6


def test_no_scores_are_computed_between_rows_that_do_not_see_each_other():
    """64 rows of 200 tokens of their own: a dense mask would take 64 times the scores."""
    rng = np.random.default_rng(0)
    rows = [[int(i) for i in rng.integers(0, 99, 200)] for _ in range(64)]
    scores = sum(block.q_mq.numel() * block.k_mk.shape[1] for block in build_tree(rows).blocks)
    assert scores < 1.3 * 64 * 200 * 200


@pytest.mark.parametrize(
    ("one", "other", "n"),
    [([], [1], 0), ([1, 2], [1, 2], 2), ([1, 2], [1, 3], 1), ([1], [1, 3], 1)],
)
def test_common_length(one, other, n):
    assert common_length(one, other) == n


@given(ROWS)
@example(CATALOGUE)
@example(LONG)
def test_few_sizes(rows):
    tree = build_tree(rows, few_sizes=True)
    check(tree, rows)
    n = len(build_tree(rows).ids_n)
    assert n <= len(tree.ids_n) <= n * 17 / 16


def test_rows_that_differ_by_a_few_tokens_make_batches_of_one_size():
    sizes = {len(build_tree([[0] * n, [1] * 600], few_sizes=True).ids_n) for n in range(590, 616)}
    assert sizes == {1216}
