"""Stages: instructions once for all seeds, then shots; from any adapter that fits."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from tallrec.data.prepared import write_prepared
from tallrec.evaluate.render import to_markdown
from tallrec.llm.adapter import attach_lora, continue_adapter
from tallrec.llm.backbone import load_backbone
from tallrec.recipe_files import load_recipe
from tallrec.run import open_run
from tallrec.steps.evaluate import evaluate_run
from tallrec.steps.tune import tune_recipe
from tests.planted import planted_splits, write_instructions
from tests.test_pipeline import INFO, silent

STAGES = """[
    {{data="instructions", source="{source}", epochs=2, count=12, max_tokens=200}},
    {{data="shots", epochs=2}},
]"""


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_folder):
    """Prepared data, instruction records and a run of both stages with two seeds."""
    folder = tmp_path_factory.mktemp("stages")
    write_prepared(folder / "data", planted_splits(), INFO)
    write_instructions(folder / "general.json", 20)
    recipe = recipe_of(folder, tiny_folder, STAGES.format(source=folder / "general.json"))
    tune_recipe(recipe, folder / "both", data=folder / "data", say=silent)
    return folder


def recipe_of(folder, model, stages, *settings):
    path = folder / "recipe.toml"
    path.write_text(f"stages = {stages.replace(chr(10), ' ')}", encoding="utf-8")
    given = (f"backbone.source={model}", "backbone.dtype=float32", "shots.count=16", "seeds=[0, 1]")
    return load_recipe(str(path), (*given, "evaluation.resamples=200", *settings))


def weights(adapter):
    return (adapter / "adapter_model.safetensors").read_bytes()


def test_instructions_are_tuned_once_and_seeds_go_on_from_them(world):
    run = world / "both"
    assert {path.name for path in run.iterdir() if path.is_dir()} == {"stage-0", "seed-0", "seed-1"}
    tuning = open_run(run).tuning
    assert tuning["stage-0"]["rows"] == 12
    assert tuning["stage-0"]["sha256"].keys() == {"general.json"}
    log = (run / "stage-0" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert losses[-1] < losses[0]
    first = load_file(run / "stage-0" / "adapter" / "adapter_model.safetensors")
    for seed in (0, 1):
        second = load_file(run / f"seed-{seed}" / "adapter" / "adapter_model.safetensors")
        # A fresh adapter of another seed would have nothing to do with the first stage's.
        moved = sum(float((second[name] - first[name]).square().sum()) for name in first)
        assert 0 < moved < 0.1 * sum(float(first[name].square().sum()) for name in first)


def test_the_second_stage_is_the_one_that_from_adapter_gives(world, tiny_folder, tmp_path):
    recipe = recipe_of(
        world,
        tiny_folder,
        '[{data="shots", epochs=2}]',
        f"backbone.adapter={world / 'both' / 'stage-0' / 'adapter'}",
    )
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    for seed in (0, 1):
        assert weights(run.adapter(seed)) == weights(world / "both" / f"seed-{seed}" / "adapter")


def test_a_run_cut_off_between_the_stages_goes_on_to_the_same_weights(world, tiny_folder, tmp_path):
    run = shutil.copytree(world / "both", tmp_path / "run")
    shutil.rmtree(run / "seed-1")
    kept = weights(run / "stage-0" / "adapter")
    recipe = recipe_of(world, tiny_folder, STAGES.format(source=world / "general.json"))
    tune_recipe(recipe, run, data=world / "data", say=silent)
    assert weights(run / "stage-0" / "adapter") == kept
    assert weights(run / "seed-1" / "adapter") == weights(world / "both" / "seed-1" / "adapter")


def test_instructions_alone_are_a_run_too(world, tiny_folder, tmp_path):
    stages = f'[{{data="instructions", source="{world / "general.json"}", loss="all-tokens"}}]'
    run = tune_recipe(
        recipe_of(world, tiny_folder, stages), tmp_path / "run", data=world / "data", say=silent
    )
    assert run.tuned
    result = evaluate_run(run.path, say=silent)
    assert result["metadata"]["shots"] == 0
    assert result["metadata"]["stages"] == "instructions (general.json), then no shots"


def test_an_adapter_of_plain_peft_is_a_start(world, tiny_folder, tmp_path):
    model = load_backbone(tiny_folder, dtype="float32", device="cpu").model
    config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "plain")
    stages = '[{data="shots", epochs=1}]'
    recipe = recipe_of(world, tiny_folder, stages, f"backbone.adapter={tmp_path / 'plain'}")
    run = tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
    before = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    after = load_file(run.adapter(0) / "adapter_model.safetensors")
    assert {name: t.shape for name, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert any((after[name] != before[name]).any() for name in after)
    page = to_markdown(evaluate_run(run.path, say=silent))
    assert f"stages: from the adapter {tmp_path / 'plain'}, then shots" in page


def test_an_adapter_that_does_not_fit_is_refused_and_leaves_no_trace(tiny_folder, tmp_path):
    model = load_backbone(tiny_folder, dtype="float32", device="cpu").model
    config = LoraConfig(r=2, target_modules=["o_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "plain")
    path = tmp_path / "plain" / "adapter_config.json"
    path.write_text(path.read_text().replace("o_proj", "elsewhere"))
    backbone = load_backbone(tiny_folder, dtype="float32", device="cpu")
    with pytest.raises(ValueError, match="does not fit"):
        continue_adapter(backbone, tmp_path / "plain")
    attach_lora(backbone)


def test_a_mistyped_path_is_named_before_anything_is_written(world, tiny_folder, tmp_path):
    for stages, settings, message in (
        (STAGES.format(source=tmp_path / "none.json"), (), r"of instructions at .*none\.json"),
        ('[{data="shots"}]', ("backbone.adapter=nowhere",), "no adapter folder nowhere"),
    ):
        recipe = recipe_of(world, tiny_folder, stages, *settings)
        with pytest.raises(ValueError, match=message):
            tune_recipe(recipe, tmp_path / "run", data=world / "data", say=silent)
        assert not (tmp_path / "run").exists()


def test_strength_multiplies_the_update(world, tiny_folder, tmp_path):
    adapters = []
    for strength in ("1.0", "0.5"):
        settings = ("seeds=[0]", f"stages.0.strength={strength}")
        recipe = recipe_of(world, tiny_folder, '[{data="shots", epochs=1}]', *settings)
        run = tune_recipe(recipe, tmp_path / strength, data=world / "data", say=silent)
        adapters.append(load_file(run.adapter(0) / "adapter_model.safetensors"))
    for name, tensor in adapters[0].items():
        factor = 0.5 if "lora_B" in name else 1.0
        torch.testing.assert_close(adapters[1][name], tensor * factor)
