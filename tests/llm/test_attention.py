"""Attention over a tree is softmax(Q K') V over a token's ancestors, whatever computes it."""

import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tallrec.llm.attention import Plan, _ByProducts, _InOnePass
from tallrec.llm.block_rows import reused_memory
from tallrec.llm.fused import kernels_for
from tallrec.llm.tree import build_tree
from tests.llm.test_tree import CATALOGUE, CHAIN, LONG, ROWS

WAYS = pytest.mark.parametrize("way", [_InOnePass, _ByProducts])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
HEADS = st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 2), (9, 3), (5, 1), (8, 8)])
WIDTHS = st.sampled_from([4, 8, 60, 64, 68, 128])
KERNELS = kernels_for(torch.zeros(1))


def drawn(*shape, dtype):
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))).to(dtype)


def ancestors(tree):
    """Which of kept and flat tokens each flat token sees, bool [n, c]."""
    n, n_kept = len(tree.ids_n), tree.n_kept
    seen = torch.zeros(n, n_kept + n, dtype=torch.bool)
    for path in tree.paths:
        for depth, token in enumerate(path.tolist()):
            if token >= n_kept:
                seen[token - n_kept, path[: depth + 1]] = True
    return seen


def dense(q_nhd, k_cgd, v_cgd, seen, scaling):
    """The same by one mask, in float32."""
    per_group = q_nhd.shape[1] // k_cgd.shape[1]
    k_chd, v_chd = (x.repeat_interleave(per_group, 1) for x in (k_cgd, v_cgd))
    scores = torch.einsum("nhd,chd->hnc", q_nhd, k_chd) * scaling
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hnc,chd->nhd", weights, v_chd)


def skip_unless_possible(way, dtype, width=4):
    x = torch.zeros(1, 1, width, dtype=dtype)
    if way is _InOnePass and not (KERNELS and KERNELS.attends(x)):
        pytest.skip("without AVX2, and in bfloat16 with AMX, attention is batched products")


def check(way, tree, heads, width, dtype, read=None):
    h, g = heads
    n, c = len(tree.ids_n), len(tree.ids_n) + tree.n_kept
    q, k, v = (
        drawn(*shape, width, dtype=dtype).requires_grad_() for shape in ((n, h), (c, g), (c, g))
    )
    seen, q_read = ancestors(tree), q
    if read is not None:
        seen, q_read = seen[read], q[read]
    plan = Plan(tree, read=read)
    with reused_memory():
        found = way.apply(q_read, k, v, plan, width**-0.5)
        grad = drawn(*found.shape, dtype=dtype)
        found_grads = torch.autograd.grad(found, (q, k, v), grad)
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    wide_q = wide[0] if read is None else wide[0][read]
    expected = dense(wide_q, *wide[1:], seen, width**-0.5)
    expected_grads = torch.autograd.grad(expected, wide, grad.float())
    allowed = 1e-4 if dtype == torch.float32 else 0.02
    # What one key alone gives has no slope; what is rounded there is judged by all gradients.
    scale = max(float(x.norm()) for x in expected_grads)
    assert found.dtype == dtype
    assert (found.float() - expected).norm() <= allowed * expected.norm()
    for one, other in zip(found_grads, expected_grads, strict=True):
        assert one.dtype == dtype
        assert (one.float() - other).norm() <= allowed * scale


@WAYS
@DTYPES
@settings(deadline=None, max_examples=40)
@given(ROWS, st.integers(0, 12), HEADS, WIDTHS)
@example(CHAIN, 0, (9, 3), 64)
@example(CATALOGUE, 0, (9, 3), 64)
@example(CATALOGUE, 30, (4, 2), 68)
@example(LONG, 0, (3, 1), 8)
def test_it_is_that_of_one_mask(way, dtype, rows, n_kept, heads, width):
    skip_unless_possible(way, dtype)
    check(way, build_tree(rows, min(rows)[:-1][:n_kept]), heads, width, dtype)


@WAYS
@DTYPES
@pytest.mark.parametrize("rows", [CATALOGUE, LONG])
def test_tokens_that_are_read_look_at_the_same(way, dtype, rows):
    skip_unless_possible(way, dtype)
    check(way, build_tree(rows), (6, 2), 64, dtype, torch.tensor([0, 3, 69, 70, 75, 99, 101]))


@pytest.mark.parametrize("floats", [False, True])
def test_bfloat16_in_words_of_either_kind(floats, monkeypatch):
    """Which of both is quicker, a processor's trial tells."""
    skip_unless_possible(_InOnePass, torch.bfloat16)
    if not (floats or torch.cpu.get_capabilities().get("avx512_bf16")):
        pytest.skip("the processor has no instructions for pairs of bfloat16")
    for module in ("tree_attention", "tree_slopes"):
        monkeypatch.setattr(f"tallrec.llm.kernels.{module}.in_floats", lambda _dtype: floats)
    check(_InOnePass, build_tree([*CATALOGUE, *LONG]), (9, 3), 64, torch.bfloat16)


@DTYPES
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8])
def test_threads_add_up_the_gradients_of_shared_keys(dtype, threads):
    """Of three heads of keys: some threads have the same one, and some have two."""
    skip_unless_possible(_InOnePass, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        check(_InOnePass, build_tree([*CATALOGUE, *LONG]), (9, 3), 64, dtype)
    finally:
        torch.set_num_threads(before)


def test_other_widths_are_for_products():
    assert not (KERNELS and KERNELS.attends(torch.zeros(1, 1, 6)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
def test_processors_with_avx2_compute_it_in_one_pass():
    """So that nothing above is skipped where it could run."""
    can = torch.cpu.get_capabilities().get
    x = torch.zeros(1, 1, 64)
    assert KERNELS.attends(x) == bool(can("avx2"))
    assert KERNELS.attends(x.bfloat16()) == bool(can("avx2") and not can("amx_bf16"))
