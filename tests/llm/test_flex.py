"""FlexAttention on a tree; here without its compiler, which on a CPU has no gradients."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallrec.llm import flex
from tallrec.llm.forward import last_hidden
from tallrec.llm.tree import build_tree
from tests.llm.architectures import tiny_model

CPU = torch.device("cpu")
ROW = st.tuples(st.integers(0, 300), st.lists(st.integers(0, 1), min_size=1, max_size=3))
ROWS = st.lists(ROW, min_size=1, max_size=8)


@pytest.fixture
def uncompiled():
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def token_rows(shape):
    """Long runs of few kinds, so that rows share much and fill several tiles."""
    return [[0] * n + [i for i in kinds for _ in range(60)] for n, kinds in shape]


def seen_by_paths(tree):
    seen_nc = np.zeros((len(tree.ids_n), tree.n_kept + len(tree.ids_n)), dtype=bool)
    for path in tree.paths:
        for depth, token in enumerate(path):
            if token >= tree.n_kept:
                seen_nc[token - tree.n_kept, path[: depth + 1]] = True
    return seen_nc


def seen_by_tiles(mask, n, c):
    """What a kernel that reads the lists of tiles lets each query see."""
    seen_nc = np.zeros((n, c), dtype=bool)
    kinds = (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    for full, (counts, lists) in enumerate(kinds):
        for i, count in enumerate(counts[0, 0].tolist()):
            for j in lists[0, 0, i, :count].tolist():
                q = torch.arange(i * 128, min(n, i * 128 + 128))[:, None]
                k = torch.arange(j * 128, min(c, j * 128 + 128))
                assert not seen_nc[q, k].any()
                seen_nc[q, k] = True if full else mask.mask_mod(0, 0, q, k)
    return seen_nc


@settings(deadline=None)
@given(ROWS, st.integers(0, 400), st.booleans())
@example([(300, [1]), (300, [0, 1])], 200, False)
@example([(0, [0, 1, 0])] * 2, 0, True)
def test_tiles_show_each_token_its_ancestors(shape, n_kept, few_sizes):
    rows = token_rows(shape)
    tree = build_tree(rows, min(rows)[:-1][:n_kept], few_sizes=few_sizes)
    wanted_nc = seen_by_paths(tree)
    found_nc = seen_by_tiles(flex.tree_mask(tree, CPU), *wanted_nc.shape)
    read = wanted_nc.any(1)  # not what `few_sizes` adds
    np.testing.assert_array_equal(found_nc[read], wanted_nc[read])
    assert found_nc.any(1).all()  # a softmax over nothing is not a number


def test_tiles_between_rows_that_do_not_see_each_other_are_left_out():
    rows = [[i] * 256 for i in range(16)]
    mask = flex.tree_mask(build_tree(rows), CPU)
    assert mask.kv_num_blocks.sum() == 32
    assert mask.full_kv_num_blocks.sum() == 16


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["llama", "granite", "gpt2"])
def test_a_model_reads_the_same_through_it(name, monkeypatch):
    """Also over batches, with what is kept from one to the next."""
    model = tiny_model(name)
    rng = np.random.default_rng(0)
    rows = [[1] * 100 + rng.integers(2, 9, rng.integers(1, 90)).tolist() for _ in range(12)]

    def hidden():
        batches = list(last_hidden(model, rows, batch_tokens=250))
        assert len(batches) > 2
        return torch.cat([hidden_nd for _, hidden_nd in batches])

    wanted = hidden()
    calls = []

    def attend(*arguments):
        calls.append(arguments)
        return real(*arguments)

    real = flex.attend
    monkeypatch.setattr(flex, "attend", attend)
    monkeypatch.setattr(flex, "works", lambda *_: True)
    torch.testing.assert_close(hidden(), wanted, atol=1e-4, rtol=1e-4)
    assert calls


def test_it_is_left_where_it_fails():
    assert "backward" in flex.obstacle(CPU, torch.float32, 9, 3, 64)
    assert not flex.works(CPU, torch.float32, 9, 3, 64)
