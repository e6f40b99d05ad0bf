"""Tokenized rows: answers where the positions say, history cut from its old end, no way out."""

from dataclasses import replace

import pytest
from hypothesis import given, settings

from tallrec.prompts import TEMPLATES
from tallrec.prompts.answers import Answers, encode, resolve_answers
from tallrec.types import Item
from tests.prompts.samples import HARBOUR, PLUMS, TOWER, sample
from tests.prompts.test_titles import ATTACKS, SAMPLES
from tests.prompts.tokenizers_built import TOKENIZERS, sentencepiece_bpe, unigram

TIMELINE, PAPER = TEMPLATES["timeline"], TEMPLATES["paper"]
LONG = sample(*((Item(str(i), f"Film {i}"), i % 2 == 0) for i in range(10)), liked=False)
BUILT = {
    (name, template): (tokenizer, resolve_answers(tokenizer, TEMPLATES[template], "movie"))
    for name in TOKENIZERS
    for tokenizer in [TOKENIZERS[name]()]
    for template in ("timeline", "paper")
}


def encode_one(sample, name="byte-level BPE", template="timeline", max_tokens=10_000):
    tokenizer, answers = BUILT[name, template]
    (row,) = encode(
        tokenizer, TEMPLATES[template], answers, [sample], domain="movie", max_tokens=max_tokens
    )
    return row, tokenizer, answers


@pytest.mark.parametrize(("name", "template"), BUILT)
def test_positions_point_at_the_answers(name, template):
    mixed = sample((TOWER, True), (HARBOUR, False), (PLUMS, True), liked=False)
    row, tokenizer, answers = encode_one(mixed, name, template)
    assert row.likes == ([True, False, True, False] if template == "timeline" else [False])
    assert [row.ids[p + 1] for p in row.positions] == [
        answers.yes if like else answers.no for like in row.likes
    ]
    assert row.prompt == row.ids[: row.positions[-1] + 1]
    text = tokenizer.decode(row.prompt, skip_special_tokens=True)
    # A lead (the space that both answers begin with) belongs to the prompt.
    assert text.rstrip(" ").endswith('2 a.m. (1979)":' if template == "timeline" else ":\n")
    assert row.dropped == 0


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bos_comes_once_and_first_where_the_tokenizer_adds_it(name):
    row, tokenizer, _ = encode_one(sample(), name)
    adds = name != "byte-level BPE"
    assert (row.ids[0] == tokenizer.bos_token_id) is adds
    assert tokenizer.bos_token_id not in row.ids[1:]


def test_an_unknown_label_is_a_placeholder_after_the_same_prompt():
    known, _, _ = encode_one(sample((TOWER, False), liked=False))
    unknown, _, _ = encode_one(sample((TOWER, False), liked=None))
    assert unknown.prompt == known.prompt
    assert unknown.positions == known.positions
    assert unknown.likes == [False, None]


@pytest.mark.parametrize("template", ["timeline", "paper"])
def test_truncation_drops_the_oldest_history_only_and_counts(template):
    whole, _, answers = encode_one(LONG, template=template)
    for dropped in (1, 4, 10):
        shorter, _, _ = encode_one(replace(LONG, history=LONG.history[dropped:]), template=template)
        cut, _, _ = encode_one(LONG, template=template, max_tokens=len(shorter.ids))
        assert cut == replace(shorter, dropped=dropped)
        assert cut.ids[cut.positions[-1] + 1] == answers.no
    assert encode_one(LONG, template=template, max_tokens=len(whole.ids))[0] == whole


def test_a_target_that_does_not_fit_alone_is_an_error():
    alone, _, _ = encode_one(replace(LONG, history=()))
    with pytest.raises(
        ValueError,
        match=f"user 'u' and item '3' has {len(alone.ids)} tokens without any history, but at most "
        f"{len(alone.ids) - 1} fit",
    ):
        encode_one(LONG, max_tokens=len(alone.ids) - 1)


def test_rows_come_in_the_order_of_the_samples_however_many():
    tokenizer, answers = BUILT["byte-level BPE", "timeline"]
    asked = [sample(target=Item(str(i), f"Film {i}"), liked=i % 3 == 0) for i in range(600)]
    rows = encode(tokenizer, TIMELINE, answers, iter(asked), domain="movie", max_tokens=99)
    assert [row.likes for row in rows] == [[s.liked] for s in asked]
    for i in (0, 255, 256, 599):
        assert f'"Film {i}"' in tokenizer.decode(rows[i].ids)
    assert encode(tokenizer, TIMELINE, answers, [], domain="movie", max_tokens=99) == []


def test_other_tokens_than_the_resolved_ones_are_an_error():
    tokenizer, answers = BUILT["byte-level BPE", "timeline"]
    swapped = Answers(yes=answers.no, no=answers.yes)
    with pytest.raises(ValueError, match=r"writes \['ĠYes'\] where \['ĠNo'\] was resolved"):
        encode(tokenizer, TIMELINE, swapped, [sample()], domain="movie", max_tokens=99)


def test_a_merge_that_only_one_title_brings_is_an_error():
    # `!":` + ` Yes` is a token of this tokenizer; the prompt that answers are resolved on has none.
    tokenizer = sentencepiece_bpe((('"', ":"), ("!", '":'), ('!":', "▁Yes")))
    answers = resolve_answers(tokenizer, TIMELINE, "movie")
    with pytest.raises(ValueError, match="merges the answer with the text before it"):
        encode(
            tokenizer,
            TIMELINE,
            answers,
            [sample(target=Item("1", "Ha!"))],
            domain="movie",
            max_tokens=999,
        )


@pytest.mark.parametrize("name", sorted(TOKENIZERS.keys() - {"unigram"}))
@pytest.mark.parametrize("template", ["timeline", "paper"])
@settings(deadline=None, max_examples=50)
@given(asked=SAMPLES)
def test_whatever_titles_hold_answers_resolve_and_nothing_is_special(name, template, asked):
    row, tokenizer, answers = encode_one(asked, name, template)
    likes = [like for _, like in asked.history] if template == "timeline" else []
    assert row.likes == [*likes, asked.liked]
    assert [row.ids[p + 1] for p in row.positions] == [
        answers.yes if like else answers.no for like in row.likes
    ]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert special.isdisjoint(row.ids[1:])


def test_every_attack_at_once():
    for name in sorted(TOKENIZERS.keys() - {"unigram"}):
        row, tokenizer, _ = encode_one(
            sample(*((Item("1", attack, attack), True) for attack in ATTACKS)), name
        )
        assert len(row.positions) == len(ATTACKS) + 1
        assert len(tokenizer.decode(row.ids).splitlines()) == len(ATTACKS) + 2


def test_a_unigram_tokenizer_that_reads_special_tokens_in_a_title_is_an_error():
    tokenizer = unigram()
    assert tokenizer.eos_token_id in tokenizer("x</s>", split_special_tokens=True)["input_ids"]
    with pytest.raises(ValueError, match=r"becomes the special token '</s>' .* rename that title"):
        encode_one(sample(target=Item("1", "x</s>")), "unigram")
