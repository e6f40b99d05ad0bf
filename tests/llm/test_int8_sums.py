"""Products that are partly by sums are exact, and layers of them compute what others do."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tallrec.llm import int8, int8_sums
from tallrec.llm.int8 import reading_in_int8
from tallrec.llm.lean import layers_of
from tallrec.llm.scoring import score_rows
from tests.llm.test_int8 import (
    KERNELS,
    SMALLER,
    model_of,
    needs_loops,
    own_forwards,
    rotated,
)
from tests.llm.test_scoring import ANSWERS, random_rows

PRODUCTS, ROWS = KERNELS and KERNELS.mixed_products, KERNELS and KERNELS.mixed_rows
needs_sums = pytest.mark.skipif(
    not (PRODUCTS and PRODUCTS.CAN), reason="the processor has no VNNI of AVX-512, or has AMX"
)
LIMITS = torch.tensor(2 * 16 * [63] + 16 * [127])  # of a group of 48


def limits_of(width):
    return LIMITS.repeat(width // len(LIMITS))


def with_terms(signed):
    """Rows as `round_row` leaves them, of numbers within the limits."""
    first, second, _ = signed.unflatten(-1, (-1, 3, 16)).unbind(-2)
    terms = ((first + 128) * second).sum((-1, -2)).to(torch.int32)
    behind = terms[..., None].contiguous().view(torch.uint8)
    return torch.cat([(signed + 128).to(torch.uint8), behind], -1)


@needs_sums
@settings(deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    n=st.sampled_from([1, 4, 5, 6, 90, 91, 200]),
    i=st.sampled_from([192, 576, 1536]),
    o=st.sampled_from([64, 128, 192, 256]),
)
def test_products_by_sums_are_exact(dtype, n, i, o):
    generator, limits = torch.Generator().manual_seed(n), limits_of(i)
    x, weights = (
        (limits * (2 * torch.rand(size, i, generator=generator) - 1)).round().long()
        for size in (n, o)
    )
    x[0], weights[0], weights[1] = limits, limits, -limits  # the largest sums
    x[-1] = -limits
    packed = PRODUCTS.packed(with_terms(weights))
    steps = torch.rand(o, generator=generator)
    found = PRODUCTS.product(with_terms(x), packed, steps, dtype)
    assert torch.equal(found, ((x @ weights.T).float() * steps).to(dtype))


@needs_sums
@settings(deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    n=st.integers(1, 20),
    width=st.sampled_from([192, 576]),
    scale=st.floats(1e-6, 1e6),
    small=st.floats(0, 2),
)
def test_rows_are_rounded_to_steps_that_leave_room_for_sums(dtype, n, width, scale, small):
    """Small numbers by sums cost the others no steps."""
    generator, limits = torch.Generator().manual_seed(n), limits_of(width)
    x = torch.randn(n, width, generator=generator) * torch.where(limits == 63, small, 1)
    x = (scale * x).to(dtype)
    x[0] = 0
    whole, steps = PRODUCTS.rounded(x)
    expected = rotated(x.float())
    torch.testing.assert_close(steps[:, 0], (expected.abs() / limits).amax(-1))
    signed = whole[:, :width].long() - 128
    assert (signed.abs() <= limits).all()
    assert ((signed * steps - expected).abs() <= 0.51 * steps).all()
    assert torch.equal(whole, with_terms(signed))


@needs_sums
@settings(deadline=None)
@given(
    n=st.integers(1, 20),
    width=st.sampled_from([192, 1536]),
    scale=st.floats(1e-3, 1e3),
    factor=st.floats(1e-3, 1e3),
)
def test_gates_are_rounded_as_rows_are(n, width, scale, factor):
    generator = torch.Generator().manual_seed(n)
    gate, up = (scale * torch.randn(2, width, generator=generator)).unbind()
    gate[0], gate[1] = 1e4, -1e4  # whose exponentials are infinite, or nothing
    expected = rotated(torch.nn.functional.silu(gate * factor) * up * factor)
    out = np.zeros(width + 4, np.uint8)
    step = float(ROWS.gate_round_row(gate.numpy(), up.numpy(), np.float32(factor), out))
    signed = torch.from_numpy(out[:width]).long() - 128
    assert (signed.abs() <= limits_of(width)).all()
    assert ((signed * step - expected).abs() <= 0.53 * step).all()
    assert np.array_equal(out, with_terms(signed).numpy())


@needs_sums
def test_what_is_not_a_number_stays_so():
    x = torch.ones(4, 192)
    x[1, 5], x[2, 37], x[3, 5] = torch.nan, torch.nan, torch.inf
    _, steps = PRODUCTS.rounded(x)
    assert steps[:, 0].isfinite().tolist() == [True, False, False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
def test_amds_processors_with_vnni_of_avx512_multiply_by_sums():
    """So that nothing here is skipped where it could run."""
    can = torch.cpu.get_capabilities().get
    vnni = can("avx512_f") and can("avx512_vnni") and not can("amx_int8")
    assert bool(vnni) == PRODUCTS.CAN
    assert (PRODUCTS.CAN and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()) == PRODUCTS.IN_USE


@needs_loops
def test_channels_of_the_largest_weights_are_by_sums():
    layers = layers_of(model_of("llama in thirds"))[:-1]
    order = int8_sums._order_of(layers)
    assert sorted(order[limits_of(192) == 63].tolist()) == list(range(192))[SMALLER]
    assert sorted(order.tolist()) == list(range(192))
    assert int8_sums._order_of(layers) is order
    with torch.no_grad():
        layers[1].mlp.up_proj.weight[:, order[:16]] /= 100
    assert int8_sums._order_of(layers) is not order


@needs_sums
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama in thirds", "qwen2 in thirds"])
def test_layers_by_sums_compute_what_those_without_do(monkeypatch, name, dtype):
    monkeypatch.setattr(PRODUCTS, "IN_USE", True)  # also where they are not quicker
    model, rows = model_of(name, dtype), random_rows(40)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad(), reading_in_int8(model):
        forwards = [type(vars(layer).get("forward")) for layer in layers_of(model)]
        assert forwards[:-1] == 2 * [int8_sums.LayerBySums]
        by_sums = model.model(ids).last_hidden_state.float()
    scores = score_rows(model, rows, ANSWERS, int8=True)
    monkeypatch.setattr(int8, "multiplies_by_sums", lambda _: False)
    with torch.no_grad(), reading_in_int8(model):
        without = model.model(ids).last_hidden_state.float()
    assert torch.nn.functional.cosine_similarity(by_sums, without, dim=-1).min() > 0.99
    assert (by_sums != without).any()
    others = score_rows(model, rows, ANSWERS, int8=True)
    assert np.corrcoef(scores, others)[0, 1] > 0.995


@needs_sums
def test_rows_by_sums_do_not_depend_on_what_they_are_scored_with(monkeypatch):
    """Whose beginning is kept from another batch, or none of it."""
    monkeypatch.setattr(PRODUCTS, "IN_USE", True)
    model, rows = model_of("llama in thirds"), random_rows(40)
    together = score_rows(model, rows, ANSWERS, int8=True)
    apart = score_rows(model, rows, ANSWERS, int8=True, batch_tokens=30)
    alone = [score_rows(model, [row], ANSWERS, int8=True)[0] for row in rows[:5]]
    np.testing.assert_allclose(apart, together, atol=1e-5)
    np.testing.assert_allclose(alone, together[:5], atol=1e-5)


@needs_sums
def test_layers_that_do_not_follow_each_other_are_not_by_sums(monkeypatch):
    monkeypatch.setattr(PRODUCTS, "IN_USE", True)
    model = model_of("llama in thirds")
    with reading_in_int8(model):
        assert own_forwards(model)
    model.model.layers[1].mlp.gate_proj = torch.nn.Linear(192, 384)  # with a bias
    with reading_in_int8(model):
        forwards = [vars(layer).get("forward") for layer in layers_of(model)]
    assert not any(isinstance(one, int8_sums.LayerBySums) for one in forwards)
    rows = random_rows(20)
    exact = score_rows(model, rows, ANSWERS)
    assert np.corrcoef(score_rows(model, rows, ANSWERS, int8=True), exact)[0, 1] > 0.995
