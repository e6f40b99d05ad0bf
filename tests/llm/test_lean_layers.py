"""Whole layers that keep a model's own weights compute what the model does."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tallrec.llm import lean_layers as lean
from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import Backbone
from tallrec.llm.int8 import tuning_in_int8
from tallrec.llm.lean_layers import LeanLayer, lean_layers
from tallrec.llm.lora import LOW, quick_adapters
from tallrec.llm.scoring import score_rows
from tests.llm.test_int8 import adapted, gradients, model_of, needs_int8, needs_loops
from tests.llm.test_scoring import ANSWERS, random_rows

FAMILIES = pytest.mark.parametrize("name", ["llama", "qwen2"])
CHANGED = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.default.weight"


def whole_layers(model):
    return [isinstance(vars(m).get("forward"), LeanLayer) for m in model.modules()].count(True)


@needs_loops
@FAMILIES
def test_hidden_states_and_gradients_are_the_models_own(name):
    model, targets = adapted(name), torch.randn(1, 57, 128)
    expected = gradients(model, targets)
    with quick_adapters(model), lean_layers(model):
        assert whole_layers(model) == 2  # of three; of the last not all is read
        found = gradients(model, targets)
    assert whole_layers(model) == 0
    for one, own in zip(found, expected, strict=True):
        torch.testing.assert_close(one, own, rtol=1e-4, atol=1e-4 * float(own.abs().max()))


@needs_loops
@FAMILIES
def test_in_bfloat16_no_more_is_lost_than_by_the_parts(monkeypatch, name):
    targets = torch.randn(1, 57, 128)
    exact = gradients(adapted(name), targets)
    model = adapted(name, torch.bfloat16)

    def errors():
        with quick_adapters(model), lean_layers(model):
            found = gradients(model, targets)
        return [float((x.float() - y).norm()) for x, y in zip(found, exact, strict=True)]

    by_whole = errors()
    monkeypatch.setattr(lean, "is_whole", lambda *_, **__: False)
    assert (np.array(by_whole) < 1.1 * np.array(errors())).all()


@needs_loops
def test_dropout_is_the_same_in_both_directions():
    """The gradient of a matrix B is what the loss changes by, for what was drawn."""
    backbone = Backbone("wide", model_of("llama"), None, "")
    model = attach_lora(backbone, dropout=0.5).train()
    targets, changes = torch.randn(1, 57, 128), []
    b = model.get_parameter(CHANGED)
    direction = torch.randn_like(b)
    with quick_adapters(model), lean_layers(model):
        for step in (0.0, 0.01, -0.01):
            torch.manual_seed(0)
            with torch.no_grad():
                b.copy_(step * direction)
            hidden, _ = gradients(model, targets)
            changes.append(float((hidden.double() * targets).sum()))
            if not step:
                slope = float((b.grad * direction).sum())
    assert slope == pytest.approx((changes[1] - changes[2]) / 0.02, rel=0.02)


@needs_loops
def test_without_training_nothing_is_left_out():
    model = attach_lora(Backbone("wide", model_of("llama"), None, ""), dropout=0.5)
    with torch.no_grad():
        model.get_parameter(CHANGED).normal_()
    expected, _ = gradients(model.eval(), torch.ones(1, 57, 128))
    with quick_adapters(model), lean_layers(model):
        assert whole_layers(model) == 2
        found, _ = gradients(model, torch.ones(1, 57, 128))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_loops
def test_validation_while_tuning_has_the_adapter_in_the_weights():
    model, rows = adapted(), random_rows(10)
    expected = score_rows(model, rows, ANSWERS)
    model.train()
    with quick_adapters(model), lean_layers(model):
        assert whole_layers(model) == 2
        np.testing.assert_allclose(score_rows(model, rows, ANSWERS), expected, atol=1e-5)


@needs_loops
def test_which_layers_are_whole():
    def count(model):
        with quick_adapters(model), lean_layers(model):
            return whole_layers(model)

    def tuned(**options):
        model = model_of("llama")
        chosen = LoraConfig(**{"r": 8, "target_modules": ["q_proj", "v_proj"], **options})
        return get_peft_model(model, chosen)

    assert count(tuned()) == 2
    assert count(tuned(target_modules=["k_proj"])) == 2
    assert count(tuned(r=LOW + 1)) == 0
    assert count(tuned(use_dora=True)) == 0
    assert count(tuned(bias="all")) == 2  # there are none
    assert count(tuned(target_modules=["q_proj", "o_proj"])) == 0
    trained = tuned()
    trained.get_submodule("base_model.model.model.layers.0.mlp.up_proj").requires_grad_(True)
    assert count(trained) == 1
    other = model_of("llama").requires_grad_(False)
    other.model.layers[0].self_attn.o_proj = torch.nn.Linear(128, 128)  # with a bias
    assert count(other) == 1


@needs_int8
def test_parts_of_eight_bits_are_computed_where_a_layer_cannot_be_of_them():
    """Its MLP is too narrow for the rotation, its other products are not."""
    model = model_of("llama")
    for layer in model.model.layers:
        mlp = layer.mlp
        mlp.gate_proj, mlp.up_proj = (torch.nn.Linear(128, 40, bias=False) for _ in range(2))
        mlp.down_proj = torch.nn.Linear(40, 128, bias=False)
    model = attach_lora(Backbone("wide", model, None, "")).train()
    with lean_layers(model):
        assert whole_layers(model) == 2
        with tuning_in_int8(model):
            assert whole_layers(model) == 0
            assert "forward" in vars(model.get_submodule("model.model.layers.0.self_attn.o_proj"))
        assert whole_layers(model) == 2
