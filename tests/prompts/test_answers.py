"""Which token says Yes: resolved at the real boundary, or refused with the tokens named."""

from itertools import count

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer

from tallrec.assets import fetch
from tallrec.prompts import TEMPLATES
from tallrec.prompts.answers import Answers, encode, resolve_answers
from tests.prompts.samples import TOWER, sample
from tests.prompts.tokenizers_built import (
    SPECIAL,
    TOKENIZERS,
    UNKNOWN,
    byte_tokenizer,
    sentencepiece_bpe,
    wrap,
)

TIMELINE, PAPER = TEMPLATES["timeline"], TEMPLATES["paper"]


def tokens_of(tokenizer, template):
    """Lead, Yes and No as tokens."""
    answers = resolve_answers(tokenizer, template, "movie")
    return [
        tokenizer.convert_ids_to_tokens(id_) for id_ in (*answers.lead, answers.yes, answers.no)
    ]


@pytest.mark.parametrize(
    ("name", "timeline", "paper"),
    [
        ("byte-level BPE", ["ĠYes", "ĠNo"], ["Yes", "No"]),
        ("bytes", ["Ġ", "Y", "N"], ["Y", "N"]),
        ("sentencepiece BPE", ["▁Yes", "▁No"], ["Yes", "No"]),
        ("unigram", ["▁Yes", "▁No"], ["Yes", "No"]),
    ],
)
def test_answers_of_built_tokenizers(name, timeline, paper):
    tokenizer = TOKENIZERS[name]()
    assert tokens_of(tokenizer, TIMELINE) == timeline
    assert tokens_of(tokenizer, PAPER) == tokens_of(tokenizer, TEMPLATES["paper-clean"]) == paper


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asset", "timeline", "paper"),
    [
        ("smollm2-135m", {"ĠYes": 9230, "ĠNo": 2838}, {"Yes": 10539, "No": 5230}),
        ("gemma3-270m", {"▁Yes": 8438, "▁No": 2301}, {"Yes": 10784, "No": 3771}),
    ],
)
def test_answers_of_real_tokenizers(asset, timeline, paper):
    (gguf,) = fetch(asset).glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for template, expected in ((TIMELINE, timeline), (PAPER, paper)):
        assert tokens_of(tokenizer, template) == list(expected)
        answers = resolve_answers(tokenizer, template, "movie")
        assert answers == Answers(*expected.values())
        (row,) = encode(
            tokenizer, template, answers, [sample((TOWER, False))], domain="movie", max_tokens=999
        )
        assert row.ids[row.positions[-1] + 1] == answers.yes


def test_the_first_answer_tokens():
    assert Answers(yes=5, no=6, lead=(1, 2)).ids(liked=True) == (1, 2, 5)
    assert Answers(yes=5, no=6).ids(liked=False) == (6,)


def test_unknown_answers_are_refused():
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "movie": 1}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ValueError, match=r"cannot tell.*'<unk>'.*another template or backbone"):
        resolve_answers(wrap(tokenizer), PAPER, "movie")


def test_one_unknown_answer_is_refused():
    tokenizer = sentencepiece_bpe()
    pieces = [*SPECIAL, "▁", "Y", "e", "s"]
    tokenizer.backend_tokenizer.model = models.BPE(
        vocab=dict(zip(pieces, count(), strict=False)), merges=[], **UNKNOWN
    )
    with pytest.raises(ValueError, match=r"\['▁', 'Y', 'e', 's'\] and \['▁', '<unk>'"):
        resolve_answers(tokenizer, TIMELINE, "movie")


def test_answers_without_tokens_are_refused():
    tokenizer = byte_tokenizer()
    backend = tokenizer.backend_tokenizer
    backend.model = models.BPE(vocab={'"': 0, ":": 1}, merges=[])  # drops what it does not know
    with pytest.raises(ValueError, match="no token for the answer after"):
        resolve_answers(tokenizer, TIMELINE, "movie")


def test_a_merge_over_the_boundary_is_refused_with_the_token_named():
    tokenizer = sentencepiece_bpe(extra_merges=((":", "▁Yes"), (":", "▁No")))
    with pytest.raises(
        ValueError, match=r"merges the answer .* writes ':▁Yes'; use another template"
    ):
        resolve_answers(tokenizer, TIMELINE, "movie")
    assert tokens_of(tokenizer, PAPER) == ["Yes", "No"]


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(ValueError, match="ByT5Tokenizer gives no character offsets"):
        resolve_answers(ByT5Tokenizer(), TIMELINE, "movie")
