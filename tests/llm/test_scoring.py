"""A score is the log-odds that the model itself gives, alone or in any company."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tallrec.llm.adapter import attach_lora
from tallrec.llm.backbone import load_backbone
from tallrec.llm.forward import hidden_at
from tallrec.llm.scoring import check_readable, head_logits, score_rows
from tallrec.prompts.answers import Answers, TokenRow
from tests.baselines.contract import ScorerContract
from tests.llm.architectures import CONFIGS, tiny_model
from tests.llm.helpers import scorer_for
from tests.planted import planted_splits

ANSWERS = Answers(yes=5, no=9)


def random_rows(n, seed=0, low=5, high=60):
    rng = np.random.default_rng(seed)
    rows = []
    for length in rng.integers(low, high, n):
        ids = [int(i) for i in rng.integers(3, 64, length)]
        rows.append(TokenRow([*ids, ANSWERS.yes], [int(length) - 1], [True]))
    return rows


@torch.no_grad()
def plain_logits(model, row):
    """What the model itself says after the prompt, one row at a time."""
    return model(input_ids=torch.tensor([row.prompt])).logits[0, -1].double()


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_are_the_models_own_log_odds(name):
    model, rows = tiny_model(name), random_rows(7)
    check_readable(model, name)
    expected = []
    for row in rows:
        log_p = plain_logits(model, row).log_softmax(-1)
        expected.append(float(log_p[ANSWERS.yes] - log_p[ANSWERS.no]))
    np.testing.assert_allclose(score_rows(model, rows, ANSWERS), expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


def test_released_is_the_logit_of_the_double_softmax():
    model, rows = tiny_model("llama"), random_rows(40)
    expected = []
    for row in rows:
        twice = plain_logits(model, row).softmax(-1)[[ANSWERS.yes, ANSWERS.no]].softmax(-1)
        expected.append(float(torch.logit(twice[0])))
    scores = score_rows(model, rows, ANSWERS, ordering="released")
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (np.argsort(scores) != np.argsort(score_rows(model, rows, ANSWERS))).any()


@pytest.mark.parametrize("name", ["llama", "gemma3", "gemma2", "gpt2"])
def test_scores_do_not_depend_on_batch_order_or_padding(name):
    model, rows = tiny_model(name), random_rows(20)
    expected = score_rows(model, rows, ANSWERS, batch_tokens=1)  # each alone, without padding
    order = np.random.default_rng(1).permutation(20)
    for batch_tokens in (1, 100, 500, 100_000):
        shuffled = score_rows(model, [rows[i] for i in order], ANSWERS, batch_tokens=batch_tokens)
        np.testing.assert_allclose(shuffled, expected[order], atol=1e-5)


def test_a_model_keeps_its_mode(backbone):
    model = attach_lora(backbone, dropout=0.5)
    torch.nn.init.normal_(
        model.get_submodule("model.model.layers.0.self_attn.q_proj.lora_B.default").weight
    )
    rows = random_rows(3)
    model.train()
    scores = score_rows(model, rows, ANSWERS)
    assert model.training
    np.testing.assert_array_equal(scores, score_rows(model, rows, ANSWERS))
    model.eval()
    score_rows(model, rows, ANSWERS)
    assert not model.training


def test_an_unknown_ordering_is_named():
    with pytest.raises(ValueError, match="one of log-odds, released; got 'probability'"):
        score_rows(tiny_model("llama"), random_rows(1), ANSWERS, ordering="probability")


def test_no_rows_no_scores():
    assert score_rows(tiny_model("llama"), [], ANSWERS).shape == (0,)


def test_progress_counts_rows():
    calls = []
    score_rows(
        tiny_model("llama"),
        random_rows(9),
        ANSWERS,
        batch_tokens=70,
        on_progress=lambda done, total, _note: calls.append((done, total)),
    )
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    assert calls[-1] == (9, 9)
    assert len(calls) > 2


def test_a_head_in_bfloat16_is_computed_in_float32():
    model = tiny_model("llama").bfloat16()
    hidden = hidden_at(model, torch.tensor([[3, 4, 5]]), torch.tensor([[0, 2]]))
    assert hidden.dtype == torch.bfloat16
    logits = head_logits(model, hidden)
    assert logits.dtype == torch.float32
    exact = hidden.double() @ model.lm_head.weight.double().T
    torch.testing.assert_close(logits.double(), exact, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head_logits(model, hidden, (7, 3)), logits[:, [7, 3]])


def test_logits_of_an_unknown_kind_are_refused():
    class Shifted(LlamaForCausalLM):
        """A family that does something after its head."""

        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * 0.5
            return output

    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"mine \(Shifted\) changes its logits"):
        check_readable(Shifted(CONFIGS["llama"]).eval(), "mine")


def test_a_model_that_is_not_finite_is_refused():
    model = tiny_model("llama")
    model.get_input_embeddings().weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="is not finite"):
        check_readable(model, "mine")


@pytest.mark.parametrize("template", ["timeline", "paper"])
def test_a_scorer_reads_the_prompt_it_renders(backbone, template):
    samples = planted_splits().test[:5]
    scorer = scorer_for(backbone, template=template)
    for score, sample in zip(scorer(samples), samples, strict=True):
        pieces = scorer.template.render(replace(sample, liked=None), "movie")
        text = "".join(
            piece + ("" if like is None else scorer.template.yes if like else scorer.template.no)
            for piece, like in zip(pieces.pieces, pieces.likes, strict=True)
        )
        ids = torch.tensor([backbone.tokenizer(text).input_ids])
        with torch.no_grad():
            logits = backbone.model(ids).logits[0, -1]
        expected = float(logits[scorer.answers.yes] - logits[scorer.answers.no])
        assert score == pytest.approx(expected, abs=1e-5)


class TestContract(ScorerContract):
    """What every scorer promises. Untuned, two random layers personalise nothing."""

    tolerance = 1e-5

    @pytest.fixture(scope="class")
    @classmethod
    def scorer(cls, tiny_folder):
        return scorer_for(load_backbone(tiny_folder, dtype="float32", device="cpu"))
