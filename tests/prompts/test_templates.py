"""Golden prompts: a changed character is a changed model."""

from dataclasses import replace

import pytest

from tallrec.prompts import TEMPLATES, get_template
from tallrec.prompts.paper import paper_record
from tests.prompts.samples import HARBOUR, MAPS, ORCHARD, PLUMS, SALT, TOWER, sample

MIXED = sample((TOWER, True), (HARBOUR, False))
LIKES = sample((TOWER, True), (HARBOUR, True), liked=False)
DISLIKES = sample((TOWER, False), (HARBOUR, False))
EMPTY = sample()
BOOKS = sample((ORCHARD, True), (SALT, True), (MAPS, False), target=SALT)

INTRO = "Below is an instruction that describes a task, paired with an input that provides further "
INTRO += "context. Write a response that appropriately completes the request."
TASK = "Given the user's preference and unpreference, identify whether the user will like the "
TASK += 'target {0} by answering "Yes." or "No.".'
PAPER_MOVIES = {
    "mixed": (
        MIXED,
        'User Preference: "Tower, The (1987)"\nUser Unpreference: "Harbour Lights (1991)"\n',
    ),
    "all likes": (
        LIKES,
        'User Preference: "Tower, The (1987)", "Harbour Lights (1991)"\nUser Unpreference: \n',
    ),
    "all dislikes": (
        DISLIKES,
        'User Preference: \nUser Unpreference: "Tower, The (1987)", "Harbour Lights (1991)"\n',
    ),
    "empty": (EMPTY, "User Preference: \nUser Unpreference: \n"),
}
ASKED = 'Whether the user will like the target movie "Plum & Plum: It\'s 2 a.m. (1979)"?'
BOOKS_INPUT = (
    'User Preference: "The Orchard" written by Ada North, '
    '"Salt (Vol. 2)" written by J. B. O\'Hara\n'
    'User Unpreference: "Maps"\n'
    'Whether the user will like the target book ""Salt (Vol. 2)" written by J. B. O\'Hara"?'
)


@pytest.mark.parametrize("case", PAPER_MOVIES)
@pytest.mark.parametrize(("name", "stray"), [("paper", "  # noqa: E501"), ("paper-clean", "")])
def test_paper_movies(case, name, stray):
    asked, history = PAPER_MOVIES[case]
    prompt = TEMPLATES[name].render(asked, "movie")
    assert prompt.pieces == (
        f"{INTRO}{stray}\n\n### Instruction:\n{TASK.format('movie')}\n\n"
        f"### Input:\n{history}{ASKED}\n\n### Response:\n",
    )
    assert prompt.likes == (asked.liked,)


def test_paper_books():
    (text,) = TEMPLATES["paper-clean"].render(BOOKS, "book").pieces
    assert text == (
        f"{INTRO}\n\n### Instruction:\n{TASK.format('book')}\n\n"
        f"### Input:\n{BOOKS_INPUT}\n\n### Response:\n"
    )


def test_a_book_without_author_is_quoted_once():
    (text,) = TEMPLATES["paper"].render(sample(target=MAPS), "book").pieces
    assert 'Whether the user will like the target book "Maps"?' in text


@pytest.mark.parametrize("case", PAPER_MOVIES)
def test_paper_record(case):
    asked, history = PAPER_MOVIES[case]
    assert paper_record(asked, "movie") == {
        "instruction": TASK.format("movie"),
        "input": history + ASKED,
        "output": "Yes." if asked.liked else "No.",
    }


def test_paper_record_of_a_book():
    assert paper_record(BOOKS, "book")["input"] == BOOKS_INPUT


def test_a_record_needs_a_label():
    with pytest.raises(ValueError, match="needs the sample's label"):
        paper_record(replace(MIXED, liked=None), "movie")


TIMELINES = {
    "mixed": (
        MIXED,
        "movie",
        (
            "Movies that a user watched, and whether the user liked each one.\n"
            '"Tower, The (1987)":',
            '\n"Harbour Lights (1991)":',
            '\n"Plum & Plum: It\'s 2 a.m. (1979)":',
        ),
    ),
    "all likes": (
        LIKES,
        "movie",
        (
            "Movies that a user watched, and whether the user liked each one.\n"
            '"Tower, The (1987)":',
            '\n"Harbour Lights (1991)":',
            '\n"Plum & Plum: It\'s 2 a.m. (1979)":',
        ),
    ),
    "empty": (
        EMPTY,
        "movie",
        (
            "Movies that a user watched, and whether the user liked each one.\n"
            '"Plum & Plum: It\'s 2 a.m. (1979)":',
        ),
    ),
    "books": (
        BOOKS,
        "book",
        (
            "Books that a user read, and whether the user liked each one.\n"
            '"The Orchard" by Ada North:',
            '\n"Salt (Vol. 2)" by J. B. O\'Hara:',
            '\n"Maps":',
            '\n"Salt (Vol. 2)" by J. B. O\'Hara:',
        ),
    ),
    "another noun": (
        sample(target=MAPS),
        "game",
        ('Games that a user rated, and whether the user liked each one.\n"Maps":',),
    ),
}


@pytest.mark.parametrize("case", TIMELINES)
def test_timeline(case):
    asked, domain, pieces = TIMELINES[case]
    prompt = TEMPLATES["timeline"].render(asked, domain)
    assert prompt.pieces == pieces
    assert prompt.likes == (*(like for _, like in asked.history), asked.liked)


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_unknown_label_is_asked_in_the_same_words(name):
    render = TEMPLATES[name].render
    unknown = render(replace(MIXED, liked=None), "movie")
    assert unknown.pieces == render(MIXED, "movie").pieces
    assert unknown.likes == (*render(MIXED, "movie").likes[:-1], None)


def test_a_timeline_only_grows_at_its_end():
    render = TEMPLATES["timeline"].render
    short = render(sample((TOWER, True), target=HARBOUR), "movie").pieces
    longer = render(sample((TOWER, True), (HARBOUR, True), target=PLUMS), "movie").pieces
    assert longer[: len(short)] == short


def test_an_unknown_template_is_named():
    with pytest.raises(ValueError, match="no template 'papr'; choose one of timeline, paper"):
        get_template("papr")
    assert get_template("timeline").name == "timeline"
