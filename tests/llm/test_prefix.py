"""A common beginning is computed once, and no score can tell."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tallrec.llm.adapter import attach_lora
from tallrec.llm.prefix import compute_prefix, shared_length
from tallrec.llm.scoring import decoder_of, score_rows
from tallrec.prompts.answers import TokenRow
from tests.llm.architectures import CONFIGS, tiny_model
from tests.llm.test_scoring import ANSWERS


def rows_after(prefix_length, n=20, low=1, high=9, seed=0):
    """Rows that share their first tokens and then go on differently."""
    rng = np.random.default_rng(seed)
    prefix = [int(i) for i in rng.integers(3, 64, prefix_length)]
    rows = []
    for i in range(n):
        own = [int(j) for j in rng.integers(3, 64, rng.integers(low, high))]
        prompt = [*prefix, i + 3, *own]
        rows.append(TokenRow([*prompt, ANSWERS.yes], [len(prompt) - 1], [None]))
    return rows


def one_by_one(model, rows):
    return np.concatenate([score_rows(model, [row], ANSWERS) for row in rows])


def tokens_computed(model, function):
    """How many positions go through the layers, padding included."""
    seen = []
    hook = model.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].numel())
    )
    function()
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize("prefix_length", [10, 60])
@pytest.mark.parametrize("name", CONFIGS)
def test_shared_scores_are_plain_scores(name, prefix_length):
    """Windows of 16 tokens are longer than one of the prefixes and shorter than the other."""
    model, rows = tiny_model(name), rows_after(prefix_length)
    expected = one_by_one(model, rows)
    for batch_tokens in (1, 60, 100_000):
        scores = score_rows(model, rows, ANSWERS, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"mamba"}))
def test_the_prefix_is_computed_once(name):
    model, rows = tiny_model(name), rows_after(60)
    computed = tokens_computed(model, lambda: score_rows(model, rows, ANSWERS))
    longest = max(len(row.prompt) - 60 for row in rows)
    assert computed == 60 + 20 * longest


def test_a_state_space_model_is_read_whole():
    model, rows = tiny_model("mamba"), rows_after(60)
    assert compute_prefix(decoder_of(model), rows[0].ids[:60]) is None
    computed = tokens_computed(model, lambda: score_rows(model, rows, ANSWERS))
    assert computed == 20 * max(len(row.prompt) for row in rows)


def test_an_adapter_acts_on_prefix_and_rest(backbone):
    model = attach_lora(backbone, targets=("all-linear",)).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    rows = rows_after(60)
    scores = score_rows(model, rows, ANSWERS)
    np.testing.assert_allclose(scores, one_by_one(model, rows), atol=1e-4)
    with model.disable_adapter():
        assert np.abs(scores - score_rows(model, rows, ANSWERS)).max() > 0.1


def test_a_small_budget_makes_small_batches():
    """Each row keeps a copy of the prefix: the batch is bounded by that, not by its rest alone."""
    model, rows = tiny_model("llama"), rows_after(160, n=40)
    sizes = []
    hook = model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda _module, _args, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    score_rows(model, rows, ANSWERS, batch_tokens=200)
    hook.remove()
    assert sizes[0] == 1
    assert 1 < max(sizes) <= 5  # 5 rows of 160 cached tokens count as 200 computed ones


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


@given(ROWS)
def test_shared_length_is_what_all_begin_with(prompts):
    shared = shared_length(prompts)
    assert all(prompt[:shared] == prompts[0][:shared] for prompt in prompts)
    assert all(len(prompt) > shared for prompt in prompts)
    if shared:
        assert len(prompts) >= 8
        assert shared >= sum(map(len, prompts)) / len(prompts) / 2


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([[1, 2, 3, i] for i in range(8)], 3),
        ([[1, 2, 3, i] for i in range(7)], 0),  # too few
        ([[1, i, 0, 0, 0] for i in range(8)], 0),  # too short
        ([[1, 2, 3]] * 8, 2),  # the same question: its last token is still its own
        ([[1, 2]] + [[1, 2, 3]] * 7, 0),
    ],
)
def test_shared_length(prompts, shared):
    assert shared_length(prompts) == shared


@pytest.mark.parametrize("ordering", ["log-odds", "released"])
def test_both_orderings(ordering):
    model, rows = tiny_model("gemma3"), rows_after(40)
    expected = [score_rows(model, [row], ANSWERS, ordering=ordering)[0] for row in rows]
    np.testing.assert_allclose(
        score_rows(model, rows, ANSWERS, ordering=ordering), expected, atol=1e-4
    )
