"""Compiled loops compute what torch's operators do, on any number of threads."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from tallrec.llm.fused import forget_stale, kernels_for, openmp

pytestmark = pytest.mark.skipif(openmp() is None, reason="torch brings another OpenMP here")

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SIZES = st.integers(1, 70)


KERNELS = kernels_for(torch.zeros(1))


def drawn(seed, *shape, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator)).to(dtype)


def close(found, expected, scale=None):
    """To a rounding of the result, and of terms as large as `scale` that it is the sum of."""
    eps = torch.finfo(found.dtype).eps
    scale = scale or (float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(found.float(), expected, rtol=eps, atol=max(4e-6, eps / 4) * scale)


@pytest.mark.parametrize(("age", "kept"), [(-10, True), (10, False)])
def test_machine_code_is_forgotten_when_it_is_older_than_a_module(tmp_path, age, kept):
    """One of which it has a part, too."""
    index, modules = tmp_path / "__pycache__" / "loop.nbi", [tmp_path / "a.py", tmp_path / "b.py"]
    index.parent.mkdir()
    for file in (index, *modules):
        file.touch()
    now = index.stat().st_mtime
    os.utime(index, (now - 100, now - 100))
    os.utime(modules[0], (now - 200, now - 200))
    os.utime(modules[1], (now - 100 + age, now - 100 + age))
    forget_stale(tmp_path)
    assert index.exists() == kept


def test_modules_of_the_future_leave_machine_code_as_it_is(tmp_path):
    index, module = tmp_path / "__pycache__" / "loop.nbi", tmp_path / "a.py"
    index.parent.mkdir()
    index.touch()
    module.touch()
    ahead = index.stat().st_mtime + 1000
    os.utime(module, (ahead, ahead))
    forget_stale(tmp_path)
    assert index.exists()


@settings(deadline=None)
@given(DTYPES, SIZES, SIZES, st.floats(0.01, 100))
def test_norm(dtype, n, d, scale):
    x, weight, grad = (
        drawn(0, 1, n, d, dtype=dtype, scale=scale),
        drawn(1, d, dtype=dtype),
        drawn(2, 1, n, d, dtype=dtype),
    )
    wide = x.float().requires_grad_()
    expected = torch.nn.functional.rms_norm(wide, (d,), weight.float(), 1e-5)
    expected.backward(grad.float())
    found, inverse = KERNELS.norm(x, weight, 1e-5)
    close(found, expected.detach())
    terms = (grad.float() * weight.float() * inverse).abs().sum()
    close(KERNELS.norm_backward(grad, x, weight, inverse), wide.grad, float(terms))


@settings(deadline=None)
@given(DTYPES, SIZES, SIZES, st.floats(0.01, 100))
def test_gated(dtype, n, d, scale):
    gate, up, grad = (drawn(i, 1, n, d, dtype=dtype, scale=scale) for i in range(3))
    wide = [x.float().requires_grad_() for x in (gate, up)]
    expected = silu(wide[0]) * wide[1]
    expected.backward(grad.float())
    close(KERNELS.gated(gate, up), expected.detach())
    for found, x in zip(KERNELS.gated_backward(grad, gate, up), wide, strict=True):
        close(found, x.grad)


@settings(deadline=None)
@given(DTYPES, SIZES, st.integers(1, 3), st.integers(1, 33))
def test_rotation_and_back(dtype, n, batch, half):
    x = drawn(0, batch, n, 3, 2 * half, dtype=dtype)
    angles = drawn(1, 1, n, half).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    expected = x.float() * cos.float()[:, :, None] + turned * sin.float()[:, :, None]
    found = KERNELS.rotated(x, cos, sin)
    close(found, expected)
    torch.testing.assert_close(
        KERNELS.rotated(found, cos, sin, -1.0).float(),
        x.float(),
        rtol=0,
        atol=6 * torch.finfo(dtype).eps * float(x.abs().max()),
    )


@settings(deadline=None)
@given(DTYPES, SIZES, st.integers(1, 90), st.integers(0, 40), st.floats(0.01, 30), st.data())
def test_softmax_of_own_and_shared_keys(dtype, n, k, s, scale, data):
    seen = torch.tensor(data.draw(st.lists(st.integers(1, k), min_size=n, max_size=n)))[:, None]
    own, shared = drawn(0, n, k, dtype=dtype, scale=scale), drawn(1, n, s, dtype=dtype, scale=scale)
    unseen = torch.arange(k) >= seen
    wide = torch.cat([own.float().masked_fill(unseen, -torch.inf), shared.float()], dim=1)
    wide.requires_grad_()
    expected = (0.3 * wide).softmax(dim=1)
    grad = drawn(2, n, k + s, dtype=dtype)
    scores = own.clone(), shared.clone()
    bases = KERNELS.softmax_(own, shared, seen.int(), 0.3)
    close(torch.cat([own, shared], dim=1), expected.detach())
    assert not own[unseen].any()
    expected.backward(grad.float())
    slopes = grad[:, :k].contiguous(), grad[:, k:].contiguous()
    KERNELS.softmax_backward_(*scores, *slopes, seen.int(), bases, 0.3)
    close(torch.cat(scores, dim=1), expected.detach(), scale=1 + scale)
    close(torch.cat(slopes, dim=1), wide.grad, scale=1 + scale)
    assert not slopes[0][unseen].any()


def kept(seed, p, n, d):
    """1 where an element stays: the gradient of an x that is added up, its other ranks being 0."""
    a, b = torch.zeros(4, d), torch.zeros(4, 1)
    a[0] = b[0] = 1.0
    return KERNELS.adapted_backward(
        torch.ones(n, 1), torch.zeros(n, d), a, b, torch.zeros(n, 4), seed, p
    )[0]


@settings(deadline=None)
@given(
    DTYPES,
    SIZES,
    SIZES,
    SIZES,
    st.sampled_from([4, 8, 12]),
    st.integers(0, (1 << 62) - 1),
    st.sampled_from([0.0, 0.05, 0.5]),
)
def test_adapted(dtype, n, i, o, rank, seed, p):
    stays = kept(seed, p, n, i)
    if p == 0:
        assert stays.all()
    x, y, grad = (drawn(k, 1, n, w, dtype=dtype) for k, w in enumerate((i, o, o)))
    assert torch.equal(KERNELS.without(x, seed, p), torch.where(stays > 0, x, 0))
    a, b = drawn(3, rank, i, scale=i**-0.5), drawn(4, rank, o)
    wide = [v.float().requires_grad_() for v in (x, a, b)]
    expected = y.float() + wide[0] * stays @ wide[1].T @ wide[2]
    expected.backward(grad.float())
    low = KERNELS.adapted_(y, x, a, b, seed, p)
    close(low, (x.float() * stays @ a.T), scale=i**0.5)
    close(y, expected.detach(), scale=rank * i**0.5)
    for found, v in zip(KERNELS.adapted_backward(grad, x, a, b, low, seed, p), wide, strict=True):
        close(found, v.grad, scale=8 * float(v.grad.abs().max()) + 1e-3)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_elements_are_left_out_independently(p):
    """Of each other, and from seed to seed, also where seeds differ in one bit."""
    n, d = 400, 500
    seeds = (0, 1, 2, 3, 1 << 32, 3 << 40, 123456789 << 20, (1 << 62) - 1)
    masks = [kept(seed, p, n, d) == 0 for seed in seeds]
    close_to = 5 * (p * (1 - p) / (n * d)) ** 0.5
    pairs = 5 * (p**2 * (1 - p**2) / (n * d)) ** 0.5
    for mask in masks:
        assert abs(mask.float().mean() - p) < close_to
        for one, other in ((mask[:, 1:], mask[:, :-1]), (mask[1:], mask[:-1])):
            assert abs((one & other).float().mean() - p**2) < pairs
        rows = mask.float().mean(1)
        assert 0.8 < rows.std() / (p * (1 - p) / d) ** 0.5 < 1.2
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert abs((one & other).float().mean() - p**2) < pairs


@settings(deadline=None)
@given(DTYPES, SIZES, SIZES, st.integers(1, 9))
def test_add_rows(dtype, n, d, places):
    part = drawn(0, 1, n, d, dtype=dtype)
    at = torch.arange(n) % places
    total = drawn(1, places, d)
    expected = total.index_add(0, at, part[0].float())
    KERNELS.add_rows_(total, at, part)
    close(total, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(dtype, bad):
    x = torch.ones(3, 40, dtype=dtype)
    x[1, 7] = bad
    ones = torch.ones_like(x)
    for found in (KERNELS.norm(x, ones[0], 1e-5)[0], KERNELS.gated(x, ones)):
        assert not found[1].isfinite().all()
        assert found[[0, 2]].isfinite().all()


def test_threads_share_the_rows():
    x, up = drawn(0, 1001, 48), drawn(1, 1001, 48)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = KERNELS.gated(x, up)
        torch.set_num_threads(3)
        assert torch.equal(KERNELS.gated(x, up), alone)
    finally:
        torch.set_num_threads(threads)


def test_other_dtypes_are_torchs():
    assert kernels_for(torch.zeros(1, dtype=torch.float16)) is None


def test_what_is_compiled_now_computes_what_the_cache_gives(tmp_path):
    """To the last bit: a tuning that is resumed is the one that was not interrupted."""
    code = (
        "import hashlib, torch\n"
        "import tallrec.llm.kernels as kernels\n"
        "from tallrec.llm.runs import runs_of\n"
        "from tallrec.llm.tree import build_tree\n"
        "torch.manual_seed(0)\n"
        "digest = hashlib.sha256()\n"
        "def add(*found):\n"
        "    for x in found:\n"
        "        digest.update(x.float().numpy().tobytes())\n"
        "for d in (5, 31, 40, 576):\n"
        "    x, weight, own, shared = (torch.randn(n, d) for n in (9, 1, 9, 9))\n"
        "    normed, scale = kernels.norm(x, weight[0], 1e-5)\n"
        "    slopes = kernels.norm_backward(own, x, weight[0], scale)\n"
        "    gates = kernels.gated_backward(x, own, shared)\n"
        "    kernels.softmax_(own, shared, torch.full((9, 1), 3, dtype=torch.int32), 0.3)\n"
        "    add(normed, slopes, *gates, own, shared)\n"
        "whole, steps = kernels.rounded(x)\n"
        "add(whole, steps, *kernels.norm_rounded(x, weight[0], 1e-5))\n"
        "add(*kernels.gated_rounded(torch.cat([x, own], 1), steps))\n"
        "rows = [[*range(200), *range(300 * i, 300 * i + 97)] for i in range(1, 6)]\n"
        "tree = build_tree(rows)\n"
        "runs = runs_of(tree.blocks)\n"
        "n = len(tree.ids_n)\n"
        "for dtype in (torch.float32, torch.bfloat16):\n"
        "    q, k, v, grad = (torch.randn(n, h, 64, dtype=dtype) for h in (6, 2, 2, 6))\n"
        "    if kernels.attends(q):\n"
        "        out, bases = kernels.attend(q, k, v, runs, 0.3)\n"
        "        add(out, bases, *kernels.attend_backward(grad, q, k, v, bases, runs, 0.3))\n"
        "print(digest.hexdigest())\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
        for _ in range(2)
    ]
    assert list(tmp_path.rglob("*.nbc"))
    assert runs[0].stdout == runs[1].stdout


def test_a_machine_that_keeps_no_files_compiles_anew(tmp_path):
    """As in a container that may write nothing: Numba finds no place for its cache."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from tallrec.llm.kernels.native import FLOAT, compiled, numbers, rows, run, share\n"
        "import torch\n"
        "@compiled\n"
        "def doubled(job):\n"
        "    x = rows(numbers(job), 0, FLOAT)\n"
        "    start, stop = share(len(x))\n"
        "    for i in range(start, stop):\n"
        "        for j in range(x.shape[1]):\n"
        "            x[i, j] *= 2\n"
        "x = torch.ones(5, 4)\n"
        "run(doubled, x)\n"
        "assert (x == 2).all()\n"
    )
    script = tmp_path / "alone.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, script], check=True, env=environment, timeout=300)
