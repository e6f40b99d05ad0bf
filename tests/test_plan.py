"""Estimates of memory agree with models where they can be counted, and say what would fit."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tallrec.llm.adapter import attach_lora
from tallrec.llm.attention import attending_by_tree
from tallrec.llm.backbone import Backbone
from tallrec.llm.estimate import Setup, scoring_memory, tuning_memory
from tallrec.llm.forward import decoder_of
from tallrec.llm.lean_layers import lean_layers
from tallrec.llm.lora import quick_adapters
from tallrec.llm.loss import collate, hidden_of
from tallrec.llm.shape import read_shape, shape_of
from tallrec.prompts.answers import TokenRow
from tallrec.recipe_files import load_recipe
from tallrec.steps.plan import in_bytes, plan_recipe

SETUP = Setup("bfloat16", "none", 1, 8, ("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def llama_7b(tmp_path_factory):
    """A folder with LLaMA-7B's config.json and nothing else."""
    folder = tmp_path_factory.mktemp("llama")
    LlamaConfig(intermediate_size=11008, max_position_embeddings=2048).save_pretrained(folder)
    return str(folder)


def test_a_shape_is_that_of_the_model(backbone, tiny_folder):
    shape = read_shape(str(tiny_folder))
    assert shape.parameters == sum(p.numel() for p in backbone.model.parameters())
    for targets in (("q_proj", "v_proj"), ("all-linear",)):
        model = attach_lora(backbone, rank=4, targets=targets)
        tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert shape.adapter(4, targets)[0] == tuned
        model.unload()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("all-linear",)])
def test_activations_are_what_the_backward_pass_keeps(dtype, dropout, targets):
    """Those of the last layer too, where each token is read."""
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=500,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    tuned = attach_lora(
        Backbone("random", model, None, ""), dropout=dropout, targets=targets
    ).train()
    ids = np.random.default_rng(0).integers(1, 500, (2, 96)).tolist()
    rows = [TokenRow(row, list(range(96)), [True] * 96) for row in ids]
    batch = collate(rows, "answers", by_tree=True)
    weights = {weight.untyped_storage().data_ptr() for weight in tuned.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = tensor  # the tensor too: its place must not be used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    trees = attending_by_tree(decoder_of(tuned))
    with quick_adapters(tuned), lean_layers(tuned), trees, hooks:
        hidden_of(tuned, batch)
    found = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    setup = Setup(dtype, "none", 1, 8, targets)
    options = {"rows": 2, "tokens": 96, "loss": "answers", "checkpointing": False}
    assert tuning_memory(shape_of(config), setup, **options).activations == pytest.approx(
        found, rel=0.1
    )


def test_known_sizes_of_llama(llama_7b):
    shape = read_shape(llama_7b)
    assert shape.parameters == 6_738_415_616
    assert shape.adapter(8, ("q_proj", "v_proj"))[0] == 4_194_304  # as Alpaca-LoRA reports
    options = {"rows": 4, "tokens": 512, "loss": "all-tokens"}
    plain = tuning_memory(shape, SETUP, **options, checkpointing=False)
    assert plain.weights == 2 * shape.parameters
    less = tuning_memory(shape, SETUP, **options, checkpointing=True)
    assert less.activations < plain.activations / 7
    in_int8 = tuning_memory(shape, SETUP, **options, checkpointing=False, int8=True)
    assert 12.8e9 < in_int8.weights - plain.weights < 13.2e9
    in_4_bits = Setup("bfloat16", "nf4", 1, 8, ("q_proj", "v_proj"))
    assert 3.5e9 < tuning_memory(shape, in_4_bits, **options, checkpointing=True).weights < 4e9
    on_4 = Setup("bfloat16", "none", 4, 8, ("q_proj", "v_proj"))
    assert 3.5e9 < tuning_memory(shape, on_4, **options, checkpointing=True).weights < 5e9
    scoring = scoring_memory(shape, SETUP, batch_tokens=4096, tokens=512, ordering="log-odds")
    assert scoring.cache == 32 * 2 * 4096 * 2 * 512
    in_int8 = scoring_memory(
        shape, SETUP, batch_tokens=4096, tokens=512, ordering="log-odds", int8=True
    )
    assert 6.4e9 < in_int8.weights - scoring.weights < 6.6e9


def test_what_does_not_fit_is_told_what_would(llama_7b):
    recipe = load_recipe("llama-7b-24gb", (f"backbone.source={llama_7b}",))
    assert plan_recipe(recipe, memory=24e9).fits
    plain = load_recipe("paper-movie", (f"backbone.source={llama_7b}",))
    plan = plan_recipe(plain, memory=24e9)
    assert not plan.fits
    needs = [need for _, need in plan.advice]
    assert needs == sorted(needs, reverse=True)
    assert needs[-1] <= 24e9 < min([plan.need, *needs[:-1]])
    assert "micro_batch=1" in plan.advice[-1][0]


def test_sizes_in_words():
    assert in_bytes("24GB") == 24e9
    assert in_bytes("1.5 GiB") == 1.5 * 2**30
    for text in ("24", "lots", "-1GB", "0GB"):
        with pytest.raises(ValueError, match="--memory"):
            in_bytes(text)


def test_the_command_says_whether_it_fits(llama_7b):
    def plan(*more):
        command = [sys.executable, "-m", "tallrec", "plan", "llama-7b-24gb", *more]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    here = ("--set", f"backbone.source={llama_7b}")
    good = plan(*here, "--memory", "24GB")
    assert good.returncode == 0, good.stderr
    assert "fits into 24.0 GB" in good.stderr
    assert "together" in good.stdout
    assert plan(*here, "--memory", "1GB").returncode == 1


def test_what_cannot_be_planned_is_named(llama_7b, tmp_path):
    recipe = load_recipe("llama-7b-24gb", (f"backbone.source={llama_7b}",))
    with pytest.raises(ValueError, match="3 devices cannot share batches of 128"):
        plan_recipe(recipe, devices=3)
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot read .*config\.json"):
        read_shape(str(tmp_path))
    wrong = load_recipe(
        "llama-7b-24gb", (f"backbone.source={llama_7b}", 'lora.targets=["nothing"]')
    )
    with pytest.raises(ValueError, match=r"lora\.targets: there are only down_proj"):
        plan_recipe(wrong)
