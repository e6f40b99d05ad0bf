"""Quick adapters and merged ones are PEFT's, in less time."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tallrec.llm.adapter import attach_lora
from tallrec.llm.lean import Normed, _norm
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.lora import _DroppedLinear, quick_adapters
from tallrec.llm.merge import fold, merged
from tests.llm.architectures import tiny_model
from tests.llm.test_int8 import needs_loops
from tests.llm.test_lean import bytes_kept
from tests.llm.test_tuning import losses, same, weights
from tests.llm.tune_tiny import tune_tiny

LAYER = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])


def adapted(backbone, **options):
    model = attach_lora(backbone, targets=("all-linear",), **options)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model):
    model.zero_grad()
    model(input_ids=IDS).logits.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=["loops", "torch"])
def by_both(request, monkeypatch):
    """With compiled loops and, as on a GPU, without."""
    if request.param == "torch":
        monkeypatch.setattr("tallrec.llm.lora.kernels_for", lambda _: None)


@pytest.mark.usefixtures("by_both")
@pytest.mark.parametrize("rank", [3, 8, 20])
def test_without_dropout_gradients_are_pefts_own(backbone, rank):
    model = adapted(backbone, rank=rank, dropout=0.0).train()
    expected = gradients(model)
    with quick_adapters(model):
        found = gradients(model)
    assert len(expected) == len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@needs_loops
def test_what_an_adapter_reads_is_had_again_from_the_norm_before_it(backbone, monkeypatch):
    model = adapted(backbone, rank=8, dropout=0.0).train()
    with lean_layers(model), quick_adapters(model):
        found, kept = gradients(model), bytes_kept(model)
        monkeypatch.setattr(Normed, "of", lambda _: None)
        expected, kept_by_all = gradients(model), bytes_kept(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=0, rtol=0)
    normed = 60 * backbone.model.config.hidden_size * 4  # float32, of one norm
    layers = backbone.model.config.num_hidden_layers
    assert kept_by_all - kept == normed * (2 * layers - 1)  # the first has no gradient of its own


def test_what_has_changed_since_a_norm_is_not_had_again_from_it():
    x, norm = torch.randn(2, 8, requires_grad=True), torch.nn.Module()
    norm.weight, norm.variance_epsilon = torch.randn(8), 1e-6
    y = _norm(norm, x)
    torch.testing.assert_close(Normed.of(y)(), y, atol=0, rtol=0)
    y.mul_(2)
    assert Normed.of(y) is None
    assert Normed.of(x) is None


def test_norms_and_adapters_work_in_inference_mode(backbone):
    model = adapted(backbone, rank=8, dropout=0.0).train()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
    with lean_layers(model), quick_adapters(model), torch.inference_mode():
        found = model(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_adapters_are_pefts_own_again_afterwards(backbone):
    model = adapted(backbone)
    layer = model.get_submodule("model.model.layers.0.self_attn.q_proj")
    with quick_adapters(model):
        assert "forward" in vars(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_zeroes_its_share_and_only_their_gradients(p):
    x = torch.ones(400, 500, requires_grad=True)
    dropped = _DroppedLinear.apply(x, torch.eye(500), p)
    assert set(dropped.unique().tolist()) == {0.0, 1.0}
    assert float((dropped == 0).float().mean()) == pytest.approx(p, abs=0.005)
    dropped.sum().backward()
    assert torch.equal(x.grad, dropped)


@pytest.mark.usefixtures("by_both")
@pytest.mark.parametrize("rank", [8, 20])
def test_torchs_generator_decides_what_is_dropped(backbone, rank):
    model = adapted(backbone, rank=rank, dropout=0.5).train()
    found = []
    with quick_adapters(model):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append([gradients(model) for _ in range(2)])
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert not same(found[0][0], found[0][1])
    assert not same(found[0][0], found[2][0])


@pytest.mark.usefixtures("by_both")
def test_dropout_leaves_the_mean_alone(backbone):
    model = adapted(backbone, dropout=0.3).train()
    layer = model.get_submodule("model.model.layers.0.self_attn.q_proj")
    x = torch.randn(1, 3, layer.in_features)
    with quick_adapters(model), torch.no_grad():
        mean = torch.stack([layer(x) for _ in range(4000)]).mean(0)
        torch.testing.assert_close(mean, layer.eval()(x), atol=0.05, rtol=0)


def test_gradient_checkpointing_changes_nothing(tiny_folder, tmp_path):
    """Layers are gone through twice: dropout and the tree must be the same both times."""
    runs = [
        tune_tiny(tiny_folder, tmp_path / str(i), dropout=0.2, epochs=2, gradient_checkpointing=on)
        for i, on in enumerate((False, True))
    ]
    np.testing.assert_allclose(losses(runs[0][2]), losses(runs[1][2]), atol=1e-6)
    for name, tensor in weights(runs[0][1]).items():
        torch.testing.assert_close(weights(runs[1][1])[name], tensor, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_merged_weights_answer_alike_and_come_back_bit_for_bit(backbone):
    model = adapted(backbone).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layer = model.get_submodule("model.model.layers.0.self_attn.q_proj")
    plain = model(input_ids=IDS).logits
    with merged(model):
        assert layer.merged
        assert not torch.equal(layer.weight, before[LAYER])
        torch.testing.assert_close(model(input_ids=IDS).logits, plain, atol=1e-5, rtol=1e-4)
    assert not layer.merged
    assert same(model.state_dict(), before)
    assert torch.equal(model(input_ids=IDS).logits, plain)


@torch.no_grad()
def test_an_error_inside_unmerges(backbone):
    model = adapted(backbone).eval()
    before = model.get_parameter(LAYER).clone()
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    assert torch.equal(model.get_parameter(LAYER), before)


@torch.no_grad()
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_other_adapters_stay_beside_the_weights(options):
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, **options)
    base = tiny_model("qwen2")
    model = get_peft_model(base, config).eval()
    plain = model(input_ids=IDS).logits
    with merged(model), quick_adapters(model):
        assert torch.equal(model(input_ids=IDS).logits, plain)


def test_a_disabled_adapter_is_not_merged(backbone):
    model = adapted(backbone).eval()
    with torch.no_grad(), model.disable_adapter():
        plain = model(input_ids=IDS).logits
        with merged(model):
            assert torch.equal(model(input_ids=IDS).logits, plain)


def test_a_folded_adapter_is_the_model_itself(backbone):
    model = adapted(backbone).eval()
    expected = model(input_ids=IDS).logits
    folded = fold(model)
    assert folded is backbone.model
    assert not any("lora" in name for name, _ in folded.named_modules())
    torch.testing.assert_close(folded(input_ids=IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}]
)
def test_what_is_more_than_lora_is_not_folded(backbone, options):
    config = LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", **options)
    with pytest.raises(ValueError, match=r"cannot be merged into them: export with --to peft"):
        fold(get_peft_model(backbone.model, config))
