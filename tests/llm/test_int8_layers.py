"""Whole layers of eight bits compute what their parts do, one after the other."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tallrec.llm import int8
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import Backbone
from tallrec.llm.int8 import reading_in_int8, tuning_in_int8
from tallrec.llm.lora import LOW
from tests.llm.test_int8 import adapted, gradients, model_of, needs_int8


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
    monkeypatch.setattr(int8, "is_whole", lambda *_, **__: False)
    with tuning_in_int8(model):
        own_hidden, own = gradients(model, targets)
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(hidden.float(), own_hidden.float(), dim=-1).min() > 0.995
    assert cosine(found.float(), own.float(), dim=0) > 0.995


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
