"""Whole layers of eight bits compute what their parts do, one after the other."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tallrec.llm import int8, int8_layers
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import Backbone
from tallrec.llm.int8 import reading_in_int8, tuning_in_int8
from tallrec.llm.int8_products import Weight
from tallrec.llm.lora import LOW
from tests.llm.test_int8 import (
    KERNELS,
    adapted,
    gradients,
    model_of,
    needs_int8,
    needs_own_products,
)


def whole_layers(model, *, tuned=True):
    return [type(part).__name__ for part in int8._parts(model, tuned=tuned).whole]


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_whole_layers_and_their_parts_give_the_same(monkeypatch, name, dtype):
    model, targets = adapted(name, dtype), torch.randn(1, 57, 128)
    assert len(whole_layers(model)) == 2  # of three; of the last not all is read
    with tuning_in_int8(model):
        hidden, found = gradients(model, targets)
    monkeypatch.setattr(int8_layers._Weights, "behind", lambda _: [])
    with tuning_in_int8(model):
        by_passes = gradients(model, targets)
    monkeypatch.setattr(int8, "is_whole", lambda *_, **__: False)
    with tuning_in_int8(model):
        by_parts = gradients(model, targets)
    cosine = torch.nn.functional.cosine_similarity
    for own_hidden, own in (by_passes, by_parts):
        assert cosine(hidden.float(), own_hidden.float(), dim=-1).min() > 0.995
        assert cosine(found.float(), own.float(), dim=0) > 0.995


def random_weights(*shapes):
    """What `finished` takes, and the same one by one."""
    weights = [Weight.made(torch.randn(*shape) / shape[1] ** 0.5, ()) for shape in shapes]
    return weights, int8_layers._Weights(weights[0], *weights).behind()


def assert_nearly(found, expected):
    """Equal but for a number here and there that was rounded to the next step."""
    for ours, own in zip(found, expected, strict=True):
        assert ours.dtype == own.dtype
        assert ours.shape == own.shape
        assert (ours - own).norm() <= 0.02 * own.norm()


@needs_own_products
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 5, 47, 96, 101])
def test_what_follows_attention_at_once_is_what_its_passes_give(n, dtype):
    torch.manual_seed(n)
    d, e, i = 128, 192, 320
    x, grad, attended = (torch.randn(1, n, k).to(dtype) for k in (d, d, e))
    norm = torch.rand(d).to(dtype), 1e-5
    (o, gate_up, down), packed = random_weights((d, e), (2 * i, d), (d, i))
    y, *kept = KERNELS.finished(x, attended, norm, packed, keeps=True)
    assert torch.equal(KERNELS.finished(x, attended, norm, packed, keeps=False)[0], y)
    whole, steps = KERNELS.rounded(attended)
    summed = o.product(whole, dtype), steps, x
    total, whole, steps, scale = KERNELS.added_norm_rounded(*summed, *norm)
    both = gate_up.product(whole, dtype)
    inner, inner_steps = KERNELS.gated_rounded(both, steps)
    expected = KERNELS.added(down.product(inner, dtype), inner_steps, total)
    assert_nearly((y, *kept), (expected, total, scale, both, steps))

    (o, gate_up, down), packed = random_weights((e, d), (d, 2 * i), (i, d))
    saved = total, norm[0], scale, both, steps
    found = KERNELS.finished_backward(grad, saved, packed)
    whole, grad_steps = KERNELS.rounded(grad)
    slopes = down.product(whole, dtype)
    whole, slope_steps = KERNELS.gated_backward_rounded(slopes, grad_steps, both, steps)
    given = gate_up.product(whole, dtype), slope_steps, None, total, norm[0], scale, grad
    dx, *rounded = KERNELS.norm_backward_added(*given, rounds=True)
    assert_nearly(found, (dx, o.times(rounded, dtype)))


@needs_int8
def test_dropout_is_the_same_in_both_directions():
    """The gradient of a matrix B is what its adapter's loss changes by, for what was drawn."""
    model = attach_lora(Backbone("wide", model_of("llama"), None, ""), dropout=0.5).train()
    targets, changes = torch.randn(1, 57, 128), []
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"
    b = model.get_parameter(name)
    direction = torch.randn_like(b)
    with tuning_in_int8(model):
        for step in (0.0, 0.05, -0.05):
            torch.manual_seed(0)
            with torch.no_grad():
                b.copy_(step * direction)
            hidden, _ = gradients(model, targets)
            changes.append(float((hidden * targets).sum()))
            if not step:
                slope = float((b.grad * direction).sum())
    assert slope == pytest.approx((changes[1] - changes[2]) / 0.1, rel=0.2)


@needs_int8
def test_which_layers_are_whole():
    def tuned(**options):
        model = model_of("llama")
        chosen = LoraConfig(**{"r": 8, "target_modules": ["q_proj", "v_proj"], **options})
        return get_peft_model(model, chosen)

    assert len(whole_layers(tuned())) == 2
    assert len(whole_layers(tuned(target_modules=["q_proj", "k_proj", "v_proj"]))) == 2
    assert whole_layers(tuned(r=LOW + 1)) == []
    assert whole_layers(tuned(use_dora=True)) == []
    assert whole_layers(tuned(target_modules=["q_proj", "o_proj"])) == []
    assert whole_layers(tuned(target_modules=["q_proj", "down_proj"])) == []
    trained = tuned()
    trained.get_submodule("base_model.model.model.layers.0.input_layernorm").requires_grad_(True)
    assert len(whole_layers(trained)) == 1
    with torch.no_grad():
        assert len(whole_layers(model_of("llama"), tuned=False)) == 2
        assert len(whole_layers(model_of("qwen2"), tuned=False)) == 2  # with biases
        assert whole_layers(tuned(), tuned=False) == []  # adapters that are not in the weights
        other = model_of("llama")
        other.model.layers[0].self_attn.o_proj = torch.nn.Linear(128, 128)  # with a bias
        assert len(whole_layers(other, tuned=False)) == 1


@needs_int8
def test_a_cache_of_keys_and_values_goes_through_whole_layers():
    model, ids = model_of("llama"), torch.arange(3, 30)[None]
    with torch.no_grad(), reading_in_int8(model):
        assert len([m for m in model.model.layers if "forward" in vars(m)]) == 2
        at_once = model.model(input_ids=ids).last_hidden_state[:, 20:]
        before = model.model(input_ids=ids[:, :20], use_cache=True).past_key_values
        later = model.model(input_ids=ids[:, 20:], past_key_values=before).last_hidden_state
    torch.testing.assert_close(later, at_once, rtol=1e-3, atol=1e-3)
