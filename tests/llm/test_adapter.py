"""An adapter on disk is whole, gives its scores back, and is nobody else's."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tallrec.llm.adapter import attach_lora, load_adapter, read_card, save_adapter
from tallrec.llm.backbone import load_backbone
from tests.llm.architectures import tiny_model
from tests.llm.helpers import card_of, scorer_for
from tests.planted import planted_splits
from tests.tiny import save_tiny_model

SAMPLES = planted_splits().test[:12]
WEIGHTS = "adapter_model.safetensors"


def tuned(backbone, seed=0, **options):
    """An adapter that changes something, as if it had been tuned."""
    model = attach_lora(backbone, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def saved(backbone, tmp_path):
    """A saved adapter folder; the backbone is free again."""
    model = tuned(backbone)
    save_adapter(model, tmp_path / "adapter", card_of(backbone))
    model.unload()
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",), ("all-linear",)])
def test_a_round_trip_gives_the_same_scores(backbone, tiny_folder, tmp_path, targets):
    plain = scorer_for(backbone)(SAMPLES)
    model = tuned(backbone, targets=targets, rank=4)
    scores = scorer_for(backbone, model)(SAMPLES)
    assert np.abs(scores - plain).max() > 0.01
    save_adapter(model, tmp_path / "adapter", card_of(backbone))
    elsewhere = load_backbone(tiny_folder, dtype="float32", device="cpu")
    loaded = load_adapter(elsewhere, tmp_path / "adapter")
    np.testing.assert_array_equal(scorer_for(elsewhere, loaded)(SAMPLES), scores)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_folder_is_an_ordinary_peft_adapter(saved, backbone, tiny_folder):
    assert {path.name for path in saved.iterdir()} == {
        "adapter_config.json",
        WEIGHTS,
        "tallrec.json",
    }
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, saved)
    expected = scorer_for(backbone, load_adapter(backbone, saved))(SAMPLES)
    np.testing.assert_array_equal(scorer_for(backbone, model)(SAMPLES), expected)


def test_equal_adapters_are_equal_files(saved, backbone, tmp_path):
    save_adapter(tuned(backbone), tmp_path / "again", card_of(backbone))
    for path in saved.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_card_comes_back(saved, backbone):
    assert read_card(saved) == card_of(backbone)


def test_unload_gives_the_backbone_back(saved, backbone):
    plain = scorer_for(backbone)(SAMPLES)
    model = load_adapter(backbone, saved)
    scores = scorer_for(backbone, model)(SAMPLES)
    model.unload()
    np.testing.assert_array_equal(scorer_for(backbone)(SAMPLES), plain)
    np.testing.assert_array_equal(
        scorer_for(backbone, load_adapter(backbone, saved))(SAMPLES), scores
    )


def test_a_second_adapter_on_top_is_refused(saved, backbone):
    load_adapter(backbone, saved)
    for put_on in (lambda: load_adapter(backbone, saved), lambda: attach_lora(backbone)):
        with pytest.raises(ValueError, match=r"tiny already carries an adapter: unload\(\)"):
            put_on()


def test_the_base_weights_stay_as_they_are(saved, backbone, tiny_folder):
    load_adapter(backbone, saved).unload()
    weights = load_file(tiny_folder / "model.safetensors")
    state = backbone.model.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())


def test_a_seed_is_an_adapter(backbone):
    states = []
    for seed in (0, 0, 1):
        model = attach_lora(backbone, seed=seed)
        states.append({n: p.clone() for n, p in model.named_parameters() if "lora_A" in n})
        model.unload()
    first, same, other = states
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_the_adapter_of_a_bfloat16_model_is_float32(tiny_folder):
    backbone = load_backbone(tiny_folder, dtype="bfloat16", device="cpu")
    model = attach_lora(backbone)
    assert {p.dtype for n, p in model.named_parameters() if "lora" in n} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if "lora" not in n} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("q_porj",), "no linear module q_porj for LoRA"),
        (("q_proj", "w_proj"), "no linear module w_proj for LoRA"),
        (("lm_head",), "no linear module lm_head for LoRA"),
        (("all-linear", "q_proj"), "no linear module all-linear for LoRA"),
        ((), "no linear module"),
    ],
)
def test_wrong_targets_name_the_right_ones(backbone, targets, named):
    with pytest.raises(ValueError, match=named) as error:
        attach_lora(backbone, targets=targets)
    assert "choose from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(
        error.value
    )
    attach_lora(backbone)  # nothing was left behind


def test_gpt2_has_its_own_kind_of_linear_module(backbone):
    gpt2 = replace(backbone, model=tiny_model("gpt2"))
    with pytest.raises(
        ValueError, match="choose from c_attn, c_fc, c_proj, or give all-linear alone"
    ):
        attach_lora(gpt2)
    assert attach_lora(gpt2, targets=("c_attn",)).get_nb_trainable_parameters()[0] > 0


def test_saving_replaces_what_is_there(saved, backbone):
    before = (saved / WEIGHTS).read_bytes()
    (saved / "stray").write_text("from another time")
    model = tuned(backbone, seed=1)
    save_adapter(model, saved, card_of(backbone))
    assert (saved / WEIGHTS).read_bytes() != before
    assert not (saved / "stray").exists()
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]


def test_a_save_that_fails_leaves_the_old_adapter(saved, backbone):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(TypeError):
        save_adapter(tuned(backbone, seed=1), saved, replace(card_of(backbone), yes={1}))
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_leftovers_of_a_killed_save_do_not_matter(saved, backbone):
    (saved.parent / ".adapter.partial").mkdir()
    (saved.parent / ".adapter.partial" / "stray").write_text("half")
    (saved.parent / ".adapter.replaced").mkdir()
    save_adapter(tuned(backbone), saved, card_of(backbone))
    assert [path.name for path in saved.parent.iterdir()] == ["adapter"]
    assert not (saved / "stray").exists()


def test_an_adapter_that_was_never_tuned_is_not_saved(backbone, tmp_path):
    model = attach_lora(backbone)  # its B matrices are zero
    with pytest.raises(ValueError, match=r"is zero in .*lora_B.*never tuned"):
        save_adapter(model, tmp_path / "adapter", card_of(backbone))
    assert not list(tmp_path.iterdir())


def test_an_adapter_that_is_not_finite_is_not_saved(backbone, tmp_path):
    model = tuned(backbone)
    next(p for n, p in model.named_parameters() if "lora_A" in n).data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"is not finite: .*lora_A"):
        save_adapter(model, tmp_path / "adapter", card_of(backbone))


def change(saved, edit):
    tensors = load_file(saved / WEIGHTS)
    edit(tensors)
    save_file(tensors, saved / WEIGHTS, metadata={"format": "pt"})


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t[FIRST].zero_(), f"is zero in {FIRST}"),
        (lambda t: t[FIRST].fill_(float("inf")), f"is not finite: {FIRST}"),
        (lambda t: t.pop(FIRST), f"does not fit tiny: 1 tensors are missing.* such as {FIRST}"),
        (lambda t: t.update(more=torch.ones(2)), "does not fit tiny: 1 tensors .* such as more"),
        (lambda t: t.update({FIRST: t[FIRST][:5].clone()}), f"another shape, such as {FIRST}"),
        (lambda t: t.clear(), "has no tensors"),
    ],
)
def test_damaged_weights_are_refused_and_leave_the_backbone_alone(saved, backbone, edit, message):
    plain = scorer_for(backbone)(SAMPLES)
    change(saved, edit)
    with pytest.raises(ValueError, match=message):
        load_adapter(backbone, saved)
    np.testing.assert_array_equal(scorer_for(backbone)(SAMPLES), plain)
    attach_lora(backbone)


def test_truncated_weights_are_refused(saved, backbone):
    weights = saved / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"weights cannot be read: .*{WEIGHTS}"):
        load_adapter(backbone, saved)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (WEIGHTS, "weights are missing: there is no"),
        ("adapter_config.json", "configuration is missing: there is no"),
        ("tallrec.json", "is not an adapter of tallrec: it has no tallrec.json"),
    ],
)
def test_a_missing_file_is_named(saved, backbone, file, message):
    (saved / file).unlink()
    with pytest.raises(ValueError, match=message):
        load_adapter(backbone, saved)
    attach_lora(backbone)


@pytest.mark.parametrize("text", ["{", "[]", '{"yes": 1}', "\xff"])
@pytest.mark.parametrize("file", ["adapter_config.json", "tallrec.json"])
def test_a_file_that_says_nothing_is_named(saved, backbone, file, text):
    (saved / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{file}|misses|does not fit"):
        load_adapter(backbone, saved)


def test_a_rank_that_is_not_the_weights_is_refused(saved, backbone):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 4}))
    with pytest.raises(ValueError, match="does not fit tiny: 8 tensors"):
        load_adapter(backbone, saved)


def test_a_foreign_backbone_is_refused_and_both_are_named(saved, tmp_path):
    folder = save_tiny_model(tmp_path / "other", seed=1)
    other = load_backbone(folder, name="other", dtype="float32", device="cpu")
    with pytest.raises(ValueError, match=r"tuned on tiny \(sha256:.*not on other \(sha256:"):
        load_adapter(other, saved)


def test_the_same_weights_elsewhere_are_the_same_backbone(saved, tiny_folder, tmp_path):
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    load_adapter(load_backbone(copy, dtype="float32", device="cpu"), saved)
