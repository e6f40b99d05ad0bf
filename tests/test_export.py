"""What a run exports, other programs load, and it scores as the run does."""

import json

import numpy as np
import pytest
from peft import PeftModel
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer

from tallrec.baselines.endpoint import Client, Endpoint
from tallrec.baselines.in_context import InContextScorer
from tallrec.baselines.journal import Journal
from tallrec.data.prepared import read_prepared
from tallrec.llm.backbone import load_backbone
from tallrec.prompts import get_template
from tallrec.prompts.in_context import question
from tallrec.recipe_files import load_recipe
from tallrec.run import create_run
from tallrec.steps.export import export_run
from tallrec.steps.recommender import Recommender
from tallrec.steps.score import seed_scorer
from tallrec.steps.tune import tune_recipe
from tests.baselines.endpoints import KEY, KEY_VARIABLE, llama_server

N_VOCAB = 500


def silent(_line):
    """Says nothing."""


@pytest.fixture(scope="module")
def samples(planted_run):
    """A few questions of users with different histories."""
    return read_prepared(planted_run.path.parent / "data").splits.test[::2]


@pytest.fixture(scope="module")
def expected(planted_run, samples, tiny_folder):
    """What the run's first seed says to them."""
    backbone = load_backbone(tiny_folder, dtype="float32", device="cpu")
    return seed_scorer(planted_run, backbone, 0, "movie")(samples)


def tuned_135m(planted_run, out, *, dtype):
    """A run of the embedded model, hardly tuned, on the data of another."""
    settings = ("seeds=[0]", "shots.count=4", "shots.orders=1", "stages.0.epochs=1")
    # In the model's dtype, as other engines compute.
    exact = ("stages.0.int8=false", "evaluation.int8=false", f"backbone.dtype={dtype}")
    recipe = load_recipe("demo", (*settings, *exact))
    return tune_recipe(recipe, out, data=planted_run.path.parent / "data", say=silent)


def log_odds(model, folder, samples, base=None):
    """Plain transformers, one prompt after the other, with the tokenizer of another folder."""
    tokenizer, card = AutoTokenizer.from_pretrained(base or folder), read_card(folder)
    template = get_template(card["template"])
    scores = []
    for sample in samples:
        ids = tokenizer(question(template, sample, card["domain"]), return_tensors="pt").input_ids
        logits = model(ids).logits[0, -1].detach()
        scores.append(float(logits[card["yes_id"]] - logits[card["no_id"]]))
    return scores


def read_card(folder):
    return json.loads((folder / "tallrec.json").read_text(encoding="utf-8"))


def test_plain_transformers_scores_a_merged_folder_alike(planted_run, samples, expected, tmp_path):
    export_run(planted_run.path, "merged", tmp_path / "out", say=silent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not hasattr(model, "peft_config")
    found = log_odds(model, tmp_path / "out", samples)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_plain_peft_scores_an_adapter_alike(planted_run, samples, expected, tmp_path, tiny_folder):
    out = tmp_path / "out"
    export_run(planted_run.path, "peft", out, say=silent)
    base = json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny_folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out).eval()
    np.testing.assert_allclose(log_odds(model, out, samples, base), expected, atol=1e-4)


def served(address, card, samples):
    """Log-odds from the log-probabilities of a server's completions."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{address}/v1", api_key=KEY)
    template, scores = get_template(card["template"]), []
    for sample in samples:
        prompt = question(template, sample, card["domain"])
        reply = client.completions.with_raw_response.create(
            model="tuned", prompt=prompt, max_tokens=1, temperature=0, logprobs=N_VOCAB
        )
        (token,) = json.loads(reply.text)["choices"][0]["logprobs"]["content"]
        by_id = {top["id"]: top["logprob"] for top in token["top_logprobs"]}
        scores.append(by_id[card["yes_id"]] - by_id[card["no_id"]])
    return scores


@pytest.mark.parametrize(
    ("kind", "tolerance", "least"), [("float32", 1e-4, 0.99), ("q8_0", 0.02, 0.9)]
)
def test_llama_cpp_ranks_as_the_run_does(
    planted_run, samples, expected, tmp_path, kind, tolerance, least
):
    out = tmp_path / "out"
    export_run(planted_run.path, "gguf", out, kind=kind, say=silent)
    (file,) = out.glob("*.gguf")
    with llama_server(file) as address:
        found = served(address, read_card(out), samples)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    assert spearmanr(found, expected).statistic >= least


def test_the_model_card_says_what_an_export_is(planted_run, tmp_path):
    export_run(planted_run.path, "peft", tmp_path / "out", seed=1, say=silent)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for words in (
        "| shots | 12 |",
        "| seeds of the run | 0, 1 |",
        "| seed of this export | 1 |",
        'Movies that a user watched, and whether the user liked each one.\n"Title A": Yes',
        "It was not measured",
        "## Limits",
        "## Licences",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onnx"}, "--to must be one of merged, gguf, peft"),
        ({"to": "gguf", "kind": "q2"}, "--type is of --to gguf, one of float32"),
        ({"to": "merged", "kind": "q8_0"}, "--type is of --to gguf"),
        ({"to": "peft", "seed": 7}, "has the seeds 0, 1; got 7"),
    ],
)
def test_what_cannot_be_exported_is_said_at_once(planted_run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_run(planted_run.path, out=tmp_path / "out", say=silent, **options)
    assert not (tmp_path / "out").exists()


def test_an_export_is_not_overwritten(planted_run, tmp_path):
    with pytest.raises(ValueError, match="exists already"):
        export_run(planted_run.path, "peft", tmp_path, say=silent)


def test_a_run_without_an_adapter_has_nothing_to_export(planted_run, tmp_path):
    recipe = planted_run.recipe.model_copy(update={"stages": ()})
    untuned = create_run(tmp_path / "untuned", recipe)
    with pytest.raises(ValueError, match="has no adapter: its recipe measures the backbone"):
        export_run(untuned.path, "peft", tmp_path / "out", say=silent)


@pytest.mark.slow
def test_what_was_read_from_a_gguf_file_goes_back_into_one(planted_run, samples, tmp_path):
    run = tuned_135m(planted_run, tmp_path / "run", dtype="bfloat16")
    out, few = tmp_path / "out", samples[::3]
    export_run(run.path, "gguf", out, say=silent)
    scores = Recommender.load(run.path, by="model", say=silent).scorer(few)
    with llama_server(out / "run.gguf") as address:
        found = served(address, read_card(out), few)
    np.testing.assert_allclose(found, scores, atol=0.25)  # bfloat16 moves log-odds by up to 0.1
    # Not of ranks: among twelve, two that are nearer than bfloat16 tells apart count for much.
    assert np.corrcoef(found, scores)[0, 1] >= 0.99

    adapter = tmp_path / "adapter"
    export_run(run.path, "peft", adapter, say=silent)
    base = AutoModelForCausalLM.from_pretrained(adapter / "base")
    plain = PeftModel.from_pretrained(base, adapter).eval()
    found = log_odds(plain, adapter, few[:3], adapter / "base")
    np.testing.assert_allclose(found, scores[:3], atol=0.25)


@pytest.mark.slow
def test_any_server_with_openais_completions_gives_the_same_ranking(
    planted_run, samples, tmp_path, monkeypatch
):
    """As `tallrec in-context --completions` asks it, which needs a few top log-probabilities."""
    run = tuned_135m(planted_run, tmp_path / "run", dtype="float32")
    out, few = tmp_path / "out", samples[::3]
    export_run(run.path, "gguf", out, say=silent)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with llama_server(out / "run.gguf") as address:
        options = {"api": "completions", "key_variable": KEY_VARIABLE, "max_tokens": 1}
        client = Client(Endpoint("tuned", f"{address}/v1", **options))
        journal, card = Journal(tmp_path / "answers.jsonl"), read_card(out)
        template = get_template(card["template"])
        found = InContextScorer(client, journal, template, card["domain"])(few)
    expected = Recommender.load(run.path, by="model", say=silent).scorer(few)
    assert spearmanr(found, expected).statistic >= 0.99
