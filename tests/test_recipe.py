import subprocess
import sys
import tomllib

import pytest

from tallrec.recipe import Recipe
from tallrec.recipe_files import about, load_recipe, shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_loads_and_survives_a_round_trip(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.model_validate(tomllib.loads(recipe.to_toml())) == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_says_what_it_is_for(name):
    first_line = shipped_recipes()[name].read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith(f"# {name}: ")


def test_the_papers_recipes_have_the_published_hyper_parameters():
    """TALLRec, section 4.1, and the released code: finetune.py and shell/instruct_7B.sh."""
    for name in ("paper-movie", "paper-book", "llama-7b-24gb"):
        recipe = load_recipe(name)
        alpaca, rec = recipe.stages
        lora = recipe.lora
        assert (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.05)
        assert lora.targets == ("q_proj", "v_proj")
        assert (alpaca.epochs, alpaca.learning_rate, alpaca.max_tokens) == (3, 3e-4, 256)
        assert (rec.epochs, rec.learning_rate, rec.patience) == (200, 1e-4, 10)
        assert (alpaca.warmup, rec.warmup) == (100, 20)
        assert {stage.batch_size for stage in recipe.stages} == {128}
        assert {stage.loss for stage in recipe.stages} == {"all-tokens"}
        assert (recipe.template, recipe.shots.validation) == ("paper", "paper")
        assert (recipe.backbone.max_tokens, recipe.evaluation.ordering) == (512, "released")


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_says_what_it_was_checked_on(name):
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    assert "Checked: " in text or "docs/results.md has the figures" in text.replace("\n# ", " ")
    assert 20 < len(about(shipped_recipes()[name])) < 150


def test_a_recipe_is_in_eight_bits_if_all_its_products_are():
    assert load_recipe("demo").in_int8
    for override in (
        "stages.0.int8=false",
        "evaluation.int8=false",
        "shots.validation=paper",
        "backbone.quantize=nf4",
    ):
        assert not load_recipe("demo", (override,)).in_int8


def test_overrides_reach_their_key_with_the_type_of_toml():
    recipe = load_recipe(
        "demo", ("stages.0.learning_rate=3e-4", "seeds=[1, 2]", "backbone.source=a/b", "name=mine")
    )
    assert recipe.stages[0].learning_rate == 3e-4
    assert recipe.seeds == (1, 2)
    assert recipe.backbone.source == "a/b"
    assert recipe.name == "mine"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.0.lr=3", r"stages\.0\.lr: there is no such key; there are epochs"),
        ("colour=1", r"colour: there is no such key; there are name, template"),
        ("stages.0.learning_rate=fast", r"stages\.0\.learning_rate: .*valid number.*'fast'"),
        ("shots.count=0", r"shots\.count: .*greater than or equal to 1"),
        ("template=haiku", r"template: .*'timeline', 'paper' or 'paper-clean'"),
        (
            "stages.0.batch_size=9",
            r"stages\.0: batch_size \(9\) must be a multiple of micro_batch \(2\)",
        ),
        ("name.x=1", "name is a value, not a table"),
        ("epochs", "--set takes path=value"),
        ("stages.1.epochs=2", "'1' is none of the numbers 0 to 0 of that list"),
        ("stages.first.epochs=2", "'first' is none of the numbers"),
        ("seeds=[1, 2, 1]", r"seeds must differ from each other; got \[1, 2, 1\]"),
        ("seeds=[]", r"seeds: .*at least 1"),
        ("data.min_history=11", r"data: min_history \(11\) must not be above history \(10\)"),
        ('loggers=["visdom"]', r"loggers\.0: .*'tensorboard', 'wandb', 'mlflow' or 'trackio'"),
        ("backbone.quantize=int4", r"backbone\.quantize: .*'none', 'int8' or 'nf4'"),
        ('stages=[{data="books"}]', r"stages\.0: .*'instructions', 'shots'"),
        ("stages=[{epochs=2}]", r"stages\.0: data is missing; give data = 'instructions' or"),
        ('stages=[{data="instructions"}]', r"stages\.0\.source: Field required"),
        ('stages=[{data="shots"}, {data="shots"}]', "stage on shots must be the last and only one"),
    ],
)
def test_a_wrong_override_is_named_with_what_would_be_right(override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("demo", (override,))


def test_a_missing_or_broken_recipe_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no recipe 'demmo': give a TOML file or one of demo"):
        load_recipe("demmo")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken\.toml is not TOML"):
        load_recipe(str(broken))


def test_recipes_and_data_need_no_torch():
    code = (
        "import sys, tallrec.recipe, tallrec.run, tallrec.data, tallrec.types, tallrec.assets;"
        "import tallrec.cli, tallrec.steps.data;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
