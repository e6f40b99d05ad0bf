"""A served model is the run's own, with its adapter folded into the weights once."""

import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tallrec.serve.model import ServedModel
from tallrec.steps.recommender import Recommender
from tests.test_pipeline import silent

HISTORY = [("i1", True), ("i2", False), ("i3", True)]
CANDIDATES = [f"i{n}" for n in range(4, 22)]


@pytest.fixture
def dora(runs, tmp_path):
    """A run whose adapter is no plain LoRA."""
    run = tmp_path / "dora"
    shutil.copytree(runs / "first", run)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(runs / "model"), config)
    model.save_pretrained(run / "seed-0" / "adapter")
    return run


def scores(recommender):
    return recommender.score(HISTORY, CANDIDATES)


def test_a_folded_adapter_gives_the_same_bits(runs, model):
    assert not isinstance(model.recommender.scorer.model, PeftModel)
    own = Recommender.load(runs / "first", say=silent)
    assert isinstance(own.scorer.model, PeftModel)
    np.testing.assert_array_equal(scores(model.recommender), scores(own))


def test_an_adapter_that_cannot_be_folded_is_served_beside_the_weights(dora, model):
    served = ServedModel.load(dora)
    assert isinstance(served.recommender.scorer.model, PeftModel)
    found = scores(served.recommender)
    np.testing.assert_array_equal(found, scores(Recommender.load(dora, say=silent)))
    assert np.abs(found - scores(model.recommender)).max() > 1e-3
