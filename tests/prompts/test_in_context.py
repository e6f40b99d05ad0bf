from dataclasses import replace

import pytest

from tallrec.prompts import TEMPLATES, get_template
from tallrec.prompts.answers import encode, resolve_answers
from tallrec.prompts.in_context import question, with_examples
from tests.prompts.samples import HARBOUR, MAPS, PLUMS, TOWER, sample
from tests.tiny import byte_level_tokenizer

LIKED = sample((TOWER, True), liked=True)
DISLIKED = sample((HARBOUR, False), target=MAPS, liked=False)
ASKED = sample((TOWER, True), (HARBOUR, False), target=PLUMS, liked=None)


def test_few_shot_timeline():
    template = with_examples(get_template("timeline"), [LIKED, DISLIKED])
    head = "Movies that a user watched, and whether the user liked each one.\n"
    plums = '"Plum & Plum: It\'s 2 a.m. (1979)":'
    assert question(template, ASKED, "movie") == (
        f'{head}"Tower, The (1987)": Yes\n{plums} Yes\n\n'
        f'{head}"Harbour Lights (1991)": No\n"Maps": No\n\n'
        f'{head}"Tower, The (1987)": Yes\n"Harbour Lights (1991)": No\n{plums}'
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_example_is_a_question_with_its_answer(name):
    plain = get_template(name)
    text = question(with_examples(plain, [LIKED, DISLIKED]), ASKED, "movie")
    first, second, asked = (question(plain, s, "movie") for s in (LIKED, DISLIKED, ASKED))
    assert text == f"{first}{plain.yes}\n\n{second}{plain.no}\n\n{asked}"


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_examples_nothing_changes(name):
    plain = get_template(name)
    assert with_examples(plain, []).render(ASKED, "movie") == plain.render(ASKED, "movie")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_asked_answer_is_not_in_the_question(name):
    template = with_examples(get_template(name), [LIKED])
    texts = {question(template, replace(ASKED, liked=liked), "movie") for liked in (True, False)}
    assert len(texts) == 1


def test_a_tokenizer_finds_the_answer_after_the_examples():
    tokenizer = byte_level_tokenizer()
    template = with_examples(get_template("timeline"), [LIKED, DISLIKED])
    answers = resolve_answers(tokenizer, template, "movie")
    (row,) = encode(tokenizer, template, answers, [ASKED], domain="movie", max_tokens=2000)
    assert tokenizer.decode(row.prompt) == question(template, ASKED, "movie")
    assert row.likes == [True, True, False, False, True, False, None]


def test_an_example_needs_an_answer():
    with pytest.raises(ValueError, match="needs its answer"):
        with_examples(get_template("paper"), [ASKED])
