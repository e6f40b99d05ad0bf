import json
import math

import numpy as np
import pytest

from tallrec.baselines.replies import (
    PARSED_LOG_ODDS,
    UnreadableReplyError,
    interpret,
    read_reply,
)


def chat(text, *positions, **message):
    """A chat completion; each position is (token, {token: log-probability})."""
    content = [
        {"token": t, "logprob": 0, "top_logprobs": [{"token": a, "logprob": p} for a, p in top]}
        for t, top in ((token, top.items()) for token, top in positions)
    ]
    choice = {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": "stop",
        "logprobs": {"content": content} if positions else None,
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return {"model": "m-2", "choices": [choice], "usage": usage}


def answer(body):
    return interpret(read_reply("key", json.dumps(body)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes.", "yes"),
        (" no", "no"),
        ('"No."', "no"),
        ("**Yes**, the user will like it.", "yes"),
        ("No, I'm sorry: they dislike horror.", "no"),
        ("Yes and no.", "yes"),
        ("The answer is No.", "no"),
        ('They will like "No Country for Old Men", so yes.', "yes"),
        ('The user may like "No Way Out".', "unparseable"),
        ("It depends: yes or no.", "unparseable"),
        ('"No Way Out" is one they may like.', "unparseable"),
        ("Notably, nobody knows.", "unparseable"),
        ("", "unparseable"),
        ("I'm sorry, but no information is given.", "refused"),
        ("As an AI I have no taste.", "refused"),
        ("I cannot determine whether the user will like it.", "refused"),
        ("We do not have enough information.", "refused"),
        ("I can\u2019t predict that.", "refused"),
        ("<think>Yes? No?</think>\n\nNo.", "no"),
        ("<think>Yes, they liked", "unparseable"),
    ],
)
def test_what_a_text_says(text, said):
    got = answer(chat(text))
    assert got.said == said
    expected = {"yes": PARSED_LOG_ODDS, "no": -PARSED_LOG_ODDS}.get(said, math.nan)
    np.testing.assert_equal(got.log_odds, expected)
    assert got.by == ("text" if said in {"yes", "no"} else "nothing")


def test_a_refusal_that_the_endpoint_names():
    assert answer(chat(None, refusal="I won't.")).said == "refused"
    body = chat("Yes")
    body["choices"][0]["finish_reason"] = "content_filter"
    assert answer(body).said == "refused"


def test_probabilities_of_spellings_are_added():
    top = {"Yes": math.log(0.3), " yes": math.log(0.2), "No": math.log(0.1), "Not": math.log(0.2)}
    got = answer(chat("Yes.", ("Yes", top), (".", {"no": 0.0})))
    assert got.by == "log-probability"
    assert got.log_odds == pytest.approx(math.log(0.5 / 0.1))
    assert not got.bounded


def test_tokens_without_a_letter_come_before_the_answer():
    blank = {"\n": math.log(0.9), "No": math.log(0.05)}
    got = answer(chat('\n"No"', ("\n", blank), ('"', {'"': 0.0}), ("No", {"No": -0.1, "Yes": -3})))
    assert got.log_odds == pytest.approx(-2.9)


@pytest.mark.parametrize(("there", "sign"), [("Yes", 1), ("NO", -1)])
def test_an_answer_that_is_missing_is_at_most_the_least_likely(there, sign):
    got = answer(chat("", ("It", {there: -1.0, "It": -0.5, "Maybe": -4.0})))
    assert got.log_odds == pytest.approx(sign * 3.0)
    assert got.bounded


def test_a_token_that_cannot_come_is_a_missing_one():
    got = answer(chat("Yes", ("Yes", {"Yes": 0.0, "Well": -5.0, "No": -9999.0})))
    assert got.log_odds == pytest.approx(5.0)
    assert got.bounded


def test_where_the_tokens_name_no_answer_the_text_does():
    got = answer(chat("The answer is yes", ("The", {"The": -0.1, "A": -3.0})))
    assert (got.said, got.by, got.log_odds) == ("yes", "text", PARSED_LOG_ODDS)


def test_a_completion_in_openais_own_format():
    logprobs = {
        "tokens": [" Yes", "\n"],
        "token_logprobs": [-0.2, -0.1],
        "top_logprobs": [{" Yes": -0.2, " No": -2.0}, {"\n": -0.1}],
    }
    body = {"choices": [{"text": " Yes\n", "finish_reason": "length", "logprobs": logprobs}]}
    reply = read_reply("key", json.dumps(body))
    assert (reply.text, reply.prompt_tokens, reply.model) == (" Yes\n", None, None)
    assert interpret(reply).log_odds == pytest.approx(1.8)


def test_usage_and_model_are_read():
    reply = read_reply("key", json.dumps(chat("Yes")))
    assert (reply.model, reply.prompt_tokens, reply.completion_tokens) == ("m-2", 7, 2)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "<html>",
        "[]",
        "null",
        '{"status": "ok"}',
        '{"choices": []}',
        '{"choices": [{"index": 0}]}',
        '{"choices": [{"message": {"content": ["a list"]}}]}',
        json.dumps(chat("Yes"))[:-9],
    ],
)
def test_anything_else_is_unreadable(body):
    with pytest.raises(UnreadableReplyError, match="it answers with"):
        read_reply("key", body)
