"""A common beginning goes through the model once, and neither scores nor gradients can tell."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tallrec.llm import forward
from tallrec.llm.adapter import attach_lora
from tallrec.llm.attention import Plan, attending_by_tree
from tallrec.llm.forward import batches, decoder_of, hidden_at, hidden_by_tree, pad, takes_trees
from tallrec.llm.scoring import score_rows
from tallrec.llm.tree import build_tree
from tallrec.prompts.answers import TokenRow
from tests.llm.architectures import CONFIGS, tiny_model
from tests.llm.test_scoring import ANSWERS

PADDED = {"mamba", "bloom", "gemma2"}  # no attention, a position bias, soft-capped scores


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


@pytest.mark.parametrize("prefix_length", [5, 60])
@pytest.mark.parametrize("name", CONFIGS)
def test_shared_scores_are_plain_scores(name, prefix_length):
    """Windows of 16 tokens are longer than some of the rows and shorter than others."""
    model, rows = tiny_model(name), rows_after(prefix_length)
    expected = one_by_one(model, rows)
    for batch_tokens in (1, 60, 100_000):
        scores = score_rows(model, rows, ANSWERS, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert np.ptp(expected) > 0.1


@pytest.mark.parametrize("batch_tokens", [1, 20, 50, 100_000])
def test_each_distinct_prefix_is_computed_once_in_all_batches(batch_tokens):
    model, rows = tiny_model("llama"), [*rows_after(60), *rows_after(30, seed=1)]
    rows += rows[3:7]
    takes_trees(model, 70)  # tried beforehand
    computed = tokens_computed(
        model, lambda: score_rows(model, rows, ANSWERS, batch_tokens=batch_tokens)
    )
    assert computed == len(build_tree([row.prompt for row in rows]).ids_n)


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - PADDED))
def test_most_families_take_trees(name):
    assert takes_trees(tiny_model(name), 16)


@pytest.mark.parametrize("name", sorted(PADDED))
def test_others_are_padded_and_the_log_says_why(name, caplog):
    model, rows = tiny_model(name), rows_after(60)
    with caplog.at_level(logging.WARNING):
        computed = tokens_computed(model, lambda: score_rows(model, rows, ANSWERS))
    assert computed >= 20 * max(len(row.prompt) for row in rows)
    (record,) = said_by_tallrec(caplog)
    assert type(decoder_of(model)).__name__ in record.message
    assert "rows are padded instead" in record.message
    caplog.clear()
    score_rows(model, rows, ANSWERS)
    assert not said_by_tallrec(caplog)


def said_by_tallrec(caplog):
    """Transformers says of its own, once a process, which kernels of a family are missing."""
    return [record for record in caplog.records if record.name.startswith("tallrec")]


def test_a_window_shorter_than_the_rows_is_padded(caplog):
    model = tiny_model("gemma3")
    assert takes_trees(model, 16)
    assert not takes_trees(model, 17)
    assert "looks back 16 tokens only and a row has 17" in caplog.text


def test_a_model_that_answers_otherwise_is_padded(monkeypatch, caplog):
    """Whatever a family does that its attention function is not told of."""
    plain = hidden_by_tree
    monkeypatch.setattr(forward, "hidden_by_tree", lambda *args: plain(*args) * 1.01)
    assert not takes_trees(tiny_model("llama"), 16)
    assert "LlamaModel gives other answers when prefixes are shared" in caplog.text


def test_the_attention_of_the_model_is_put_back():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    score_rows(model, rows_after(9), ANSWERS)
    with pytest.raises(KeyError), attending_by_tree(decoder_of(model)):
        raise KeyError
    assert model.config._attn_implementation == before
    model(input_ids=torch.tensor([[1, 2, 3]]))


ROWS = st.lists(
    st.tuples(st.integers(0, 60), st.lists(st.integers(3, 63), min_size=1, max_size=40)),
    min_size=1,
    max_size=12,
)


def branching(parts):
    """Each row begins with the first tokens of the one before it."""
    rows = [[3]]
    for shared, own in parts:
        rows.append(rows[-1][:shared] + own)
    return rows[1:]


def check_gradients(name, rows):
    """Against those of the padded batch, of a loss that weighs each token's state."""
    model, tree = tiny_model(name), build_tree(rows)
    at_n2 = torch.tensor([[b, t] for b, row in enumerate(rows) for t in range(len(row))])
    weight_nd = torch.randn(len(at_n2), 32, generator=torch.Generator().manual_seed(0))

    def gradients(hidden_nd):
        model.zero_grad()
        (hidden_nd * weight_nd).sum().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    padded_nd = hidden_at(model, pad(rows), at_n2)
    expected = gradients(padded_nd)
    with attending_by_tree(decoder_of(model)):
        flat_nd = hidden_by_tree(model, Plan(tree))[np.concatenate(tree.paths)]
        found = gradients(flat_nd)
    torch.testing.assert_close(flat_nd, padded_nd, atol=1e-4, rtol=0)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.norm()) for gradient in expected.values())
    for parameter, gradient in expected.items():
        assert float((found[parameter] - gradient).norm()) <= 1e-4 * scale, parameter


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "phi", "granite"])
@settings(max_examples=25)
@given(ROWS)
def test_gradients_are_those_of_the_padded_batch(name, parts):
    check_gradients(name, branching(parts))


def test_gradients_of_shared_keys():
    """Forty short continuations of one long beginning look at it together."""
    rows = [row.prompt for row in rows_after(70, n=40)]
    assert any(len(block.shared_s) for block in build_tree(rows).blocks)
    check_gradients("llama", rows)


def test_bfloat16_is_as_exact_as_in_padded_batches():
    model, rows = tiny_model("llama"), rows_after(40)
    exact = score_rows(model, rows, ANSWERS)
    model = model.bfloat16()
    shared = score_rows(model, rows, ANSWERS)
    forward._tried[decoder_of(model)] = "told not to"
    padded = score_rows(model, rows, ANSWERS)
    assert np.abs(shared - exact).mean() < 2 * np.abs(padded - exact).mean() + 1e-3


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


def test_batches_take_each_row_once_longest_first_within_the_budget():
    lengths = [int(n) for n in np.random.default_rng(0).integers(1, 50, 40)] + [500]
    found = list(batches(lengths, 100))
    assert sorted(i for batch in found for i in batch) == list(range(41))
    longest = [max(lengths[i] for i in batch) for batch in found]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(found, longest, strict=True):
        assert len(batch) == 1 or len(batch) * length <= 100


def test_pad():
    assert pad([[1, 2, 3], [4]]).tolist() == [[1, 2, 3], [4, 0, 0]]
