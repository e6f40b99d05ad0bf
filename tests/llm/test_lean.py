"""Lean layers compute what the model's own do and keep less for it."""

import pytest
import torch

from tallrec.llm.attention import Plan, attending_by_tree
from tallrec.llm.forward import hidden_by_tree
from tallrec.llm.lean import _tried
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.tree import build_tree
from tests.llm.architectures import tiny_model

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def frozen(name):
    """A model of which the queries are tuned."""
    model = tiny_model(name)
    for parameter in model.parameters():
        parameter.requires_grad = False
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" in parameter_name
    torch.nn.init.normal_(model.model.layers[0].input_layernorm.weight, mean=1.0)
    return model


def gradients(model):
    model.zero_grad()
    logits = model(input_ids=IDS).logits
    logits.square().mean().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits, found


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "granite"])
def test_gradients_are_the_models_own(name):
    model = frozen(name)
    logits, expected = gradients(model)
    with lean_layers(model):
        lean_logits, found = gradients(model)
    assert found.keys() == expected.keys() != set()
    torch.testing.assert_close(lean_logits, logits, atol=1e-5, rtol=1e-5)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("name", "computed"), [("llama", 5), ("qwen2", 5), ("gemma3", 80)])
def test_the_last_layer_computes_what_is_read(name, computed):
    """Gemma 3 has more norms in a layer, so that all of its last one is computed."""
    model = frozen(name)
    tree = build_tree([[3] * 40 + [i, *range(4, 13)] for i in range(4)])
    plan, sizes = Plan(tree, read=torch.tensor([1, 39, 49, 59, 79])), []
    model.model.layers[-1].mlp.down_proj.register_forward_pre_hook(
        lambda _module, inputs: sizes.append(inputs[0].shape[1])
    )

    def found():
        model.zero_grad()
        with attending_by_tree(model.model):
            hidden_rd = hidden_by_tree(model, plan)
            hidden_rd.square().mean().backward()
        return hidden_rd, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain_rd, plain = found()
    with lean_layers(model):
        sizes.clear()
        hidden_rd, gradients = found()
    assert sizes == [computed]
    torch.testing.assert_close(hidden_rd, plain_rd, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients, plain, atol=1e-6, rtol=1e-4)


def bytes_kept(model):
    """Bytes of the distinct tensors that are kept for gradients, weights aside."""
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(input_ids=torch.arange(3, 63)[None]).logits
    assert output.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in own)


def test_less_is_kept():
    model = frozen("llama").bfloat16()
    plain = bytes_kept(model)
    with lean_layers(model):
        assert bytes_kept(model) < 0.85 * plain


def test_the_models_own_layers_are_put_back():
    model = frozen("llama")
    layer = model.model.layers[0]
    with lean_layers(model):
        assert "forward" in vars(layer.input_layernorm)
        assert "forward" in vars(layer.mlp)
        with lean_layers(model):  # validation scores inside tuning
            pass
        assert "forward" in vars(layer.mlp)
    assert "forward" not in vars(layer.input_layernorm)
    assert "forward" not in vars(layer.mlp)


def test_a_layer_of_another_formula_under_the_same_names_is_left_alone():
    model = frozen("llama")
    layer = model.model.layers[0]
    layer.mlp.__class__ = type("Other", (type(layer.mlp),), {"forward": lambda _self, x: x})
    norm = layer.input_layernorm
    norm.__class__ = type("Plus", (type(norm),), {"forward": lambda _self, x: x + 1})
    with lean_layers(model):
        assert "forward" not in vars(layer.mlp)
        assert "forward" not in vars(norm)
        assert "forward" in vars(layer.post_attention_layernorm)
    assert not _tried[layer.mlp]


def test_norms_that_are_tuned_are_left_alone():
    model = frozen("llama")
    model.model.norm.weight.requires_grad = True
    with lean_layers(model):
        assert "forward" not in vars(model.model.norm)
