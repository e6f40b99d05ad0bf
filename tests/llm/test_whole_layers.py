"""Whole layers compute what their parts do, one after the other."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import rms_norm

from tests.llm.test_int8 import needs_loops, rotated, steps_of
from tests.llm.test_kernels import DTYPES, KERNELS, close, drawn

ROWS = st.integers(1, 30)
WIDTHS = st.integers(1, 5).map(lambda k: 64 * k)
EPSILON = 1e-5


def rounded_is(found, steps, expected):
    """Within the rounding of rows in 254 steps, after a rotation."""
    expected = rotated(expected)
    assert ((((found.float() - 128) * steps) - expected).abs() <= 0.52 * steps + 1e-6).all()
    assert (steps[..., 0] <= 1.01 * steps_of(expected) + 1e-9).all()


@needs_loops
@settings(deadline=None)
@given(DTYPES, ROWS, WIDTHS, st.floats(0.01, 100))
def test_sums_and_norms(dtype, n, d, scale):
    y, x, weight = (
        drawn(k, *shape, dtype=dtype) for k, shape in enumerate([(1, n, d)] * 2 + [(d,)])
    )
    y, factors = scale * y, drawn(3, 1, n, 1).abs() / scale
    alone, normed, inverse = KERNELS.added_norm(y, x, weight, EPSILON)
    torch.testing.assert_close(alone, x + y)
    close(normed, rms_norm(alone.float(), (d,), weight.float(), EPSILON))
    torch.testing.assert_close(inverse, KERNELS.norm(alone, weight, EPSILON)[1])
    total = x.float() + y.float() * factors
    close(KERNELS.added(y, factors, x), total, scale=float(total.abs().max()))
    found, whole, steps, inverse = KERNELS.added_norm_rounded(y, factors, x, weight, EPSILON)
    torch.testing.assert_close(found, KERNELS.added(y, factors, x), rtol=0, atol=0)
    normed = rms_norm(found.float(), (d,), weight.float(), EPSILON)
    rounded_is(whole, steps, normed)
    for again, one in zip(
        KERNELS.norm_rounded(found, weight, EPSILON), (whole, steps, inverse), strict=True
    ):
        torch.testing.assert_close(again, one, rtol=1e-6, atol=1)
    torch.testing.assert_close(inverse, KERNELS.norm(found, weight, EPSILON)[1])


@needs_loops
@settings(deadline=None)
@given(DTYPES, ROWS, WIDTHS, st.booleans(), st.booleans())
def test_gradients_through_a_norm_and_beside_it(dtype, n, d, more_comes, is_scaled):
    y, x, beside, more = (drawn(k, 1, n, d, dtype=dtype) for k in range(4))
    weight, factors = drawn(4, d, dtype=dtype), drawn(5, 1, n, 1).abs() if is_scaled else None
    wide = x.float().requires_grad_()
    slopes = y.float() * (factors if is_scaled else 1) + (more.float() if more_comes else 0)
    rms_norm(wide, (d,), weight.float(), EPSILON).backward(slopes)
    expected, scale = wide.grad + beside.float(), KERNELS.norm(x, weight, EPSILON)[1]
    arguments = y, factors, more if more_comes else None, x, weight, scale, beside
    dx, whole, steps = KERNELS.norm_backward_added(*arguments, rounds=True)
    terms = float((slopes * weight.float() * scale).abs().sum())
    close(dx, expected, scale=terms + 4)
    rounded_is(whole, steps, expected)
    alone, *nothing = KERNELS.norm_backward_added(*arguments)
    torch.testing.assert_close(alone, dx, rtol=0, atol=0)
    assert not any(part.numel() for part in nothing)


def turned(x, cos, sin):
    one, other = x.chunk(2, dim=-1)
    c, s = (part.float()[..., None, : x.shape[-1] // 2] for part in (cos, sin))
    return torch.cat([one * c - other * s, other * c + one * s], dim=-1)


def stacked(i, widths, parts, p):
    """Adapters of rank 4 and 8 in turn, and a mask of what each of them reads."""
    ends, table, masks, rank = [0, *torch.tensor(widths).cumsum(0).tolist()], [], [], 0
    for seed, part in enumerate(parts):
        first, rank = rank, rank + 4 * (1 + seed % 2)
        table.append([*KERNELS.drawn(seed, p), ends[part], ends[part + 1], first, rank])
        masks.append(lambda n, seed=seed: KERNELS.without(torch.ones(1, n, i), seed, p))
    a, b = drawn(6, rank, i, scale=i**-0.5), drawn(7, rank, max(widths))
    table = torch.tensor(table, dtype=torch.int64).view(-1, KERNELS.COLUMNS)
    return KERNELS.Stacked(a, b, table), masks


@needs_loops
@settings(deadline=None, max_examples=60)
@given(
    DTYPES,
    ROWS,
    WIDTHS,
    st.tuples(st.integers(1, 3), st.integers(1, 2)),
    st.lists(st.integers(0, 2), max_size=3),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
def test_queries_keys_and_values(dtype, n, i, heads, parts, p, rounds):
    """Forward and backward as torch's, with adapters of any of the three, twice of one too."""
    widths = [64 * heads[0], 64 * heads[1], 64 * heads[1]]
    o, (adapters, masks) = sum(widths), stacked(i, widths, parts, p)
    y, bias, x = (drawn(k, *s, dtype=dtype) for k, s in enumerate([(1, n, o), (o,), (1, n, i)]))
    factors = drawn(3, 1, n, 1).abs() if rounds else None
    products = [y] if rounds else [part.contiguous() for part in y.split(widths, dim=-1)]
    weight = drawn(4, i, dtype=dtype)
    angle = drawn(5, 1, n, 32).repeat(1, 1, 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    scale = KERNELS.norm(x, weight, EPSILON)[1]
    normed = (x.float() * scale * weight.float()).requires_grad_()
    a, b = (part.clone().requires_grad_() for part in adapters[:2])
    out = (y.float() * (factors if rounds else 1) + bias.float()).requires_grad_()
    total = out
    for (*_, o1, o2, r1, r2), mask in zip(adapters.table.tolist(), masks, strict=True):
        low = normed * mask(n) @ a[r1:r2].T
        total = total + torch.nn.functional.pad(low @ b[r1:r2, : o2 - o1], (o1, o - o2))
    q, k, v = (part.unflatten(-1, (-1, 64)) for part in total.split(widths, dim=-1))
    expected = [part.flatten(2) for part in (turned(q, cos, sin), turned(k, cos, sin), v)]
    of_norm = x, weight, scale
    *found, low = KERNELS.projected(products, factors, bias, of_norm, adapters, (cos, sin), widths)
    largest = 8 * float(total.detach().abs().max())
    for one, own in zip(found, expected, strict=True):
        close(one, own.detach(), scale=largest)
    grads = [drawn(8 + k, *one.shape, dtype=dtype) for k, one in enumerate(found)]
    torch.autograd.backward(expected, [grad.float() for grad in grads])
    given, dx, da, db = KERNELS.projected_backward(
        grads, of_norm, adapters, (cos, sin), low, rounds=rounds
    )
    if rounds:
        rounded_is(*given, out.grad)
    else:
        for one, own in zip(given, out.grad.split(widths, dim=-1), strict=True):
            close(one, own, scale=8)
    if not parts:
        assert dx.numel() == da.numel() == db.numel() == 0
        return
    for one, own in ((dx, normed.grad), (da, a.grad), (db, b.grad)):
        close(one, own, scale=8 * float(own.abs().max()) + 1e-3)
