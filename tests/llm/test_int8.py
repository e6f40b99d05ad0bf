"""Products of eight bits give nearly the scores of the model's own, and leave nothing behind."""

import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from tallrec.llm import int8, int8_products
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import Backbone
from tallrec.llm.forward import takes_trees
from tallrec.llm.fused import kernels_for
from tallrec.llm.int8 import all_in_int8, reading_in_int8, tuning_in_int8
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.processor import multiplies_bytes
from tallrec.llm.scoring import score_rows
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts.answers import TokenRow
from tests.llm.architectures import SIZE, SMALL, tiny_model
from tests.llm.test_scoring import ANSWERS, random_rows

KERNELS = kernels_for(torch.zeros(1))
needs_loops = pytest.mark.skipif(KERNELS is None, reason="torch brings another OpenMP here")
NO_INT8 = int8._obstacle(tiny_model("llama"))
BYTES = KERNELS and KERNELS.byte_products
SHORTS = KERNELS and KERNELS.short_products
needs_bytes = pytest.mark.skipif(
    not (BYTES and BYTES.IN_USE), reason="the processor has no VNNI, or has AMX"
)
needs_shorts = pytest.mark.skipif(
    not (SHORTS and SHORTS.in_shorts()), reason="the processor has no AVX2, or AVX-512 without BW"
)
needs_own_products = pytest.mark.skipif(
    not (KERNELS and (BYTES.IN_USE or SHORTS.IN_USE)), reason="torch's products are quicker here"
)
needs_int8 = pytest.mark.skipif(bool(NO_INT8), reason=f"products of eight bits: {NO_INT8}")

WIDE = {**SIZE, "hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.1}
HEADS = {"num_attention_heads": 3, "num_key_value_heads": 1}
THIRDS = {**WIDE, **HEADS, "hidden_size": 192, "intermediate_size": 384}  # can be read by sums
SMALLER = slice(30, 158)  # channels of those, two thirds
FAMILIES = {
    "llama": LlamaConfig(**WIDE),
    "llama in thirds": LlamaConfig(**THIRDS),
    "qwen2": Qwen2Config(**WIDE),
    "qwen2 in thirds": Qwen2Config(**THIRDS),
    "gpt2": GPT2Config(**{**SMALL, "n_embd": 128, "n_layer": 2, "n_head": 4, "n_positions": 256}),
}
PARTS = 5  # of the last layer, and of one that is not whole: four projections and an MLP, ...
MATRICES = 6  # ... of which gate and up are one, ...
OF_WHOLE = 4  # ... as queries, keys and values are of a whole layer


def model_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    if "thirds" in name:
        shrink_channels(model.model.layers)
    return model.to(dtype)


@torch.no_grad()
def shrink_channels(layers):
    """As in language models: where activations are small, weights are larger."""
    for layer in layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight[SMALLER] /= 4
        for part in (layer.mlp.gate_proj, layer.mlp.up_proj):
            part.weight[:, SMALLER] *= 1.5


def own_forwards(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def rotated(x):
    """x H: of each row, four runs are mixed, and in them each 16 neighbours."""
    h = torch.einsum("ac,bd->abcd", *(torch.tensor(hadamard(n)).float() for n in (4, 16)))
    return torch.einsum("...amb,abcd->...cmd", x.unflatten(-1, (4, -1, 16)), h).flatten(-3)


def longest_sets(x):
    """Of rows, as `kernels.short_sets` sums them: the same two neighbours of up to nine runs."""
    pairs = x.unflatten(-1, (-1, 32, 2)).square().sum(-1)
    n, n_groups = pairs.shape[-2], -(-pairs.shape[-2] // 9)
    groups = pairs.tensor_split([n * group // n_groups for group in range(1, n_groups)], -2)
    return torch.stack([group.sum(-2).amax(-1) for group in groups]).amax(0).sqrt()


def steps_of(x):
    """The size of steps that rotated rows are rounded to."""
    steps = x.abs().amax(-1) / 127
    return torch.maximum(steps, longest_sets(x) / KERNELS.short_sets.X) if SHORTS.IN_USE else steps


def test_the_rotation_is_orthogonal_and_mixes_64_numbers():
    h = rotated(torch.eye(192))
    torch.testing.assert_close(h @ h.T, 64 * torch.eye(192))
    assert ((h != 0).sum(0) == 64).all()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch has another OpenMP")
def test_processors_with_avx2_or_vnni_multiply_in_eight_bits():
    """So that nothing here is skipped where it could run."""
    can = torch.cpu.get_capabilities().get
    shorts = can("avx512_bw") if can("avx512_f") else can("avx2")
    vnni = can("avx512_vnni") if can("avx512_f") else can("avx_vnni")
    assert bool(vnni and not can("amx_int8")) == BYTES.IN_USE
    assert SHORTS.in_shorts() == bool(shorts)
    assert bool(shorts and not multiplies_bytes()) == SHORTS.IN_USE
    assert (not NO_INT8) == bool(shorts or multiplies_bytes()), NO_INT8


@needs_loops
@settings(deadline=None)
@given(
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(1, 20),
    st.integers(1, 9),
    st.floats(1e-6, 1e6),
)
def test_rows_are_rounded_to_the_nearest_of_254_steps(dtype, n, width, scale):
    generator = torch.Generator().manual_seed(n)
    x = (scale * torch.randn(1, n, 64 * width, generator=generator)).to(dtype)
    x[0, 0] = 0
    whole, steps = KERNELS.rounded(x)
    expected = rotated(x.float())
    assert whole.dtype == torch.uint8
    assert whole.shape == x.shape
    torch.testing.assert_close(steps[..., 0], steps_of(expected))
    found = (whole.float() - 128) * steps
    assert ((found - expected).abs() <= 0.51 * steps).all()
    assert (whole[0, 0] == 128).all()


@needs_loops
@settings(deadline=None)
@given(st.sampled_from([torch.float32, torch.bfloat16]), st.integers(1, 20), st.integers(1, 3))
def test_gates_are_rounded_as_they_would_be_in_float32(dtype, n, width):
    generator = torch.Generator().manual_seed(n)
    d = 64 * width
    both, grad = (torch.randn(1, n, k, generator=generator).to(dtype) for k in (2 * d, d))
    scale, grad_scale = (torch.rand(1, n, 1, generator=generator) + 0.5 for _ in range(2))
    wide = (both.float() * scale).requires_grad_()
    gate, up = wide.chunk(2, dim=-1)
    inner = torch.nn.functional.silu(gate) * up
    inner.backward(grad.float() * grad_scale)
    for (whole, steps), expected in (
        (KERNELS.gated_rounded(both, scale), inner.detach()),
        (KERNELS.gated_backward_rounded(grad, grad_scale, both, scale), wide.grad),
    ):
        found = (whole.float() - 128) * steps
        assert ((found - rotated(expected)).abs() <= 0.51 * steps).all()
        assert (steps[..., 0] <= 1.001 * steps_of(rotated(expected))).all()


def products_of(whole, weights, products, dtype):
    """Found, and exact."""
    steps = torch.rand(len(weights), generator=torch.Generator().manual_seed(0))
    sums = (whole.long() - 128) @ (weights.long() - 128).T
    found = products.product(whole, products.packed(weights), steps, dtype)
    return found, (sums.float() * steps).to(dtype)


sizes_of_products = given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    n=st.sampled_from([1, 5, 6, 95, 96, 97, 200]),
    i=st.sampled_from([64, 576, 640, 704, 1536]),
    o=st.sampled_from([64, 192]),
)


@needs_bytes
@settings(deadline=None)
@sizes_of_products
def test_products_by_vnni_are_exact(dtype, n, i, o):
    generator = torch.Generator().manual_seed(n)
    whole = torch.randint(0, 256, (2, n, i), dtype=torch.uint8, generator=generator)
    weights = torch.randint(0, 256, (o, i), dtype=torch.uint8, generator=generator)
    whole[0, 0], weights[0], weights[1] = 255, 255, 0  # the largest sums
    found, exact = products_of(whole, weights, BYTES, dtype)
    assert torch.equal(found, exact)


def in_bounds(x):
    """Rotated rows as `kernels.round_row` rounds them where sums are of 16 bits."""
    whole = np.empty(x.shape, np.uint8)
    for row, out in zip(x.numpy(), whole, strict=True):
        least = KERNELS.short_sets.least_top(row, KERNELS.short_sets.X)
        KERNELS.int8.round_rotated(row.copy(), out, least)
    return torch.from_numpy(whole)


@needs_shorts
@settings(deadline=None)
@sizes_of_products
def test_products_by_sums_of_16_bits_are_exact(dtype, n, i, o):
    """Also where a set has all of a row, and inputs and weights lie in one direction."""
    generator = torch.Generator().manual_seed(n)
    x, w = (torch.randn(size, i, generator=generator) for size in (n, o))
    x[0], w[0], w[1] = 1, 1, -1
    x[n // 2], x[-1] = w[2], 1e-3 * w[3]
    x[-1, 6::64] = x[-1, 7::64] = w[3, 6::64] = w[3, 7::64] = 9.0
    weights, steps = SHORTS.rounded(rotated(w) / 64)  # which rotates them back
    signed = (weights.long() - 128).abs()
    assert (signed[:, ::2] + signed[:, 1::2]).max() <= 128
    torch.testing.assert_close((weights - 128.0) * steps, w, atol=0.51 * steps.max(), rtol=0)
    found, exact = products_of(in_bounds(x), weights, SHORTS, dtype)
    assert torch.equal(found, exact)
    assert longest_sets(in_bounds(x) - 128.0).max() * longest_sets(weights - 128.0).max() < 2**15


@needs_bytes
def test_products_by_vnni_are_those_of_torch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 576, generator=generator) for n in (97, 192))
    rounded, by = KERNELS.rounded(x), []
    for loops in (BYTES, None):
        monkeypatch.setattr(int8_products, "_loops", lambda loops=loops: loops)
        by.append(int8_products.Weight.made(weight, ()).times(rounded, x.dtype))
    torch.testing.assert_close(*by, rtol=1e-5, atol=1e-4)


@needs_loops
def test_what_is_not_a_number_stays_so():
    x = torch.ones(3, 64)
    x[1, 5], x[2, 5] = torch.nan, torch.inf
    whole, steps = KERNELS.rounded(x)
    scaled = KERNELS.scaled_(whole.float(), steps)
    assert scaled[0].isfinite().all()
    assert not scaled[1:].isfinite().any()
    whole, steps = KERNELS.gated_rounded(x.repeat(1, 2), torch.ones(3, 1))
    assert steps[:, 0].isfinite().tolist() == [True, False, False]


@needs_int8
def test_a_channel_a_hundred_times_as_large_leaves_steps_for_the_rest():
    torch.manual_seed(0)
    layer = torch.nn.Linear(256, 128, bias=False)
    x = torch.randn(50, 256)
    x[:, 7] *= 100
    layer.weight.data[:, 7] /= 100  # as in language models: what is large is weighed little
    own = layer(x)
    weight = int8_products.Weight.made(layer.weight.data, ())
    ours = int8._read(layer, weight, int8_products.Inputs(), x)
    steps = x.abs().amax(1, keepdim=True) / 127
    plain = layer((x / steps).round() * steps)
    assert (ours - own).norm() < 0.4 * (plain - own).norm()


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "llama in thirds", "qwen2", "qwen2 in thirds"])
def test_scores_are_nearly_the_models_own(name, dtype):
    model, rows = model_of(name, dtype), random_rows(60)
    exact = score_rows(model.float(), rows, ANSWERS)
    scores = score_rows(model.to(dtype), rows, ANSWERS, int8=True)
    assert (scores != exact).all()
    assert np.corrcoef(scores, exact)[0, 1] > 0.995
    assert own_forwards(model) == []
    np.testing.assert_array_equal(  # bit for bit again, with kept weights
        score_rows(model, rows, ANSWERS, int8=True), scores
    )


@needs_int8
@pytest.mark.parametrize("name", ["llama", "llama in thirds"])
def test_a_model_that_is_first_asked_in_eight_bits_takes_trees(name):
    model = model_of(name)
    with reading_in_int8(model):
        assert takes_trees(model, 9)


@needs_int8
def test_only_wide_plain_layers_of_the_decoder_are_replaced():
    model = model_of("llama")
    narrow, biased = (layer.mlp for layer in model.model.layers[:2])
    narrow.gate_proj, narrow.up_proj = torch.nn.Linear(128, 8), torch.nn.Linear(128, 8)
    narrow.down_proj = torch.nn.Linear(8, 128)  # a router's size
    biased.gate_proj = torch.nn.Linear(128, 256)
    with reading_in_int8(model):
        inside = own_forwards(model)
    assert len(inside) == (PARTS - 1) + (PARTS + 2) + PARTS
    assert all(name.endswith(("_proj", "mlp")) for name in inside)
    narrow = tiny_model("llama")  # 32 wide
    with reading_in_int8(narrow):
        assert own_forwards(narrow) == []


@needs_int8
def test_a_model_is_all_in_eight_bits_if_none_of_its_matrices_is_left():
    assert all_in_int8(model_of("llama"))
    assert not all_in_int8(model_of("gpt2"))  # its layers are no linear ones
    assert not all_in_int8(tiny_model("llama"))  # too narrow
    assert not all_in_int8(model_of("llama", torch.float16))


@needs_int8
def test_layers_of_other_kinds_stay_as_they_are():
    model, rows = model_of("gpt2"), random_rows(7)
    scores = score_rows(model, rows, ANSWERS, int8=True)
    np.testing.assert_array_equal(scores, score_rows(model, rows, ANSWERS))


@needs_int8
@pytest.mark.parametrize("name", ["llama", "llama in thirds"])
def test_adapters_are_rounded_with_the_weights_that_they_change(name):
    model = model_of(name)
    backbone = Backbone("wide", model, None, "")
    rows = random_rows(40)
    bare = score_rows(model, rows, ANSWERS, int8=True)
    tuned = attach_lora(backbone)
    for seed in (1, 2):
        torch.manual_seed(seed)
        for parameter_name, parameter in tuned.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.3)
        exact = score_rows(tuned, rows, ANSWERS)
        scores = score_rows(tuned, rows, ANSWERS, int8=True)
        assert np.corrcoef(scores, exact)[0, 1] > 0.995
        assert np.corrcoef(bare, exact)[0, 1] < 0.98
    np.testing.assert_array_equal(score_rows(tuned.unload(), rows, ANSWERS, int8=True), bare)


@needs_int8
@pytest.mark.parametrize("part", ["mlp.up_proj", "mlp.down_proj", "self_attn.k_proj"])
@pytest.mark.parametrize("name", ["llama", "llama in thirds"])
def test_changed_weights_are_rounded_again(name, part):
    model, rows = model_of(name), random_rows(40)
    before = score_rows(model, rows, ANSWERS, int8=True)
    with torch.no_grad():
        model.get_submodule(f"model.layers.0.{part}").weight.mul_(0.5)
    after = score_rows(model, rows, ANSWERS, int8=True)
    assert (before != after).all()
    assert np.abs(after - score_rows(model, rows, ANSWERS)).mean() < 0.15


def adapted(name="llama", dtype=torch.float32):
    """A model in training mode whose adapter's update is not zero."""
    model = attach_lora(Backbone("wide", model_of(name, dtype), None, ""), dropout=0.0)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def linear_layers(model):
    layers = model.base_model.model.model.named_modules()
    return [x for x in layers if type(x[1]) is torch.nn.Linear and ".lora_" not in x[0]]


def gradients(model, targets):
    model.zero_grad()
    hidden = model.base_model.model.model(input_ids=torch.arange(3, 60)[None]).last_hidden_state
    (hidden * targets).sum().backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return hidden.detach(), torch.cat(found)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_gradients_are_nearly_the_models_own(name, dtype):
    model, targets = adapted(name, dtype), torch.randn(1, 57, 128)
    hidden, expected = gradients(model.float(), targets)
    model = model.to(dtype)
    with tuning_in_int8(model):
        ours, found = gradients(model, targets)
        assert len(own_forwards(model)) == 2 + PARTS
    assert own_forwards(model) == []
    assert found.shape == expected.shape
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(found.float(), expected, dim=0) > 0.99
    assert cosine(ours.float(), hidden, dim=-1).min() > 0.99
    assert (ours != hidden).any()


@needs_int8
def test_validation_while_tuning_is_as_without():
    model, rows = adapted(), random_rows(10)
    expected = score_rows(model, rows, ANSWERS)
    with lean_layers(model), tuning_in_int8(model):
        np.testing.assert_array_equal(score_rows(model, rows, ANSWERS), expected)
    model.train()
    assert (score_rows(model, rows, ANSWERS, int8=True) != expected).all()


@needs_int8
def test_the_models_own_weights_are_let_go_until_validation_reads_them(monkeypatch):
    let_go = []
    monkeypatch.setattr(int8, "page_out", lambda weights: let_go.append([id(w) for w in weights]))
    model, rows = adapted(), random_rows(3)
    frozen = [id(layer.weight) for _, layer in linear_layers(model)]
    with lean_layers(model), tuning_in_int8(model):
        for passes in (1, 1, 2):
            if passes == 2:
                score_rows(model, rows, ANSWERS)
                model.train()
            gradients(model, torch.ones(1, 57, 128))
            assert len(let_go) == passes
    assert sorted(let_go[0]) == sorted(let_go[1]) == sorted(frozen)


@needs_int8
def test_weights_are_rounded_once_until_they_change(monkeypatch):
    made, make = [], int8_products.Weight.made
    monkeypatch.setattr(int8_products.Weight, "made", lambda *of: made.append(of) or make(*of))
    model, all_made = adapted(), 2 * (2 * OF_WHOLE + MATRICES)
    for _ in range(2):
        with tuning_in_int8(model):
            assert len(made) == all_made
    with torch.no_grad():
        model.get_submodule("model.model.layers.0.mlp.up_proj").weight.mul_(0.5)
    with tuning_in_int8(model):
        assert len(made) == all_made + 2
    score_rows(model, random_rows(3), ANSWERS, int8=True)  # with the adapter in queries and values
    assert len(made) == all_made + 2 + 2 + 2


@needs_int8
def test_nothing_is_drawn():
    """Else a seed's adapter would depend on what a process did before."""
    model, before = adapted(), torch.random.get_rng_state()
    int8_products.works.cache_clear()
    with tuning_in_int8(model):
        assert own_forwards(model)
    assert torch.equal(torch.random.get_rng_state(), before)


@needs_int8
def test_tuning_learns_in_eight_bits(tmp_path):
    """As without, to what eight bits change; activations may be computed twice."""
    rows = [
        TokenRow([*row.ids[:-1], (yes and ANSWERS.yes) or ANSWERS.no], row.positions, [yes])
        for row, yes in zip(random_rows(32), 16 * [True, False], strict=True)
    ]
    logs = {}
    for options in ({}, {"int8": True}, {"int8": True, "gradient_checkpointing": True}):
        torch.manual_seed(0)
        model = attach_lora(Backbone("wide", model_of("llama"), None, ""), dropout=0.0)
        folder = tmp_path / str(len(logs))
        tuning = TuningOptions(epochs=4, learning_rate=3e-3, **options)
        log = tune(model, rows, ANSWERS, tuning, folder=folder)
        logs[len(logs)] = np.array([entry["loss"] for entry in log if "loss" in entry])
    assert logs[0][-4:].mean() < 0.8 * logs[0][:4].mean()
    assert (logs[1] != logs[0]).all()
    np.testing.assert_allclose(logs[1], logs[0], atol=0.1)
    np.testing.assert_allclose(logs[2], logs[1], atol=1e-4)


@needs_loops
def test_a_processor_without_the_instructions_says_so(monkeypatch, caplog):
    monkeypatch.setattr(int8, "multiplies_bytes", lambda: False)
    monkeypatch.setattr(KERNELS.short_products, "in_shorts", lambda: False)
    int8._say.cache_clear()
    model, rows = model_of("llama"), random_rows(5)
    expected = score_rows(model, rows, ANSWERS)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(score_rows(model, rows, ANSWERS, int8=True), expected)
    assert len(caplog.records) == 1
    assert "eight bits" in caplog.text


def test_other_dtypes_say_so(caplog):
    int8._say.cache_clear()
    with caplog.at_level(logging.WARNING), reading_in_int8(model_of("llama", torch.float16)):
        pass
    assert "float16" in caplog.text
