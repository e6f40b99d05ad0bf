"""Instruction records in the format of Alpaca, tokenized with the border of their response."""

import pytest

from tallrec.prompts.alpaca import instruction_prompt
from tallrec.prompts.responses import encode_instructions, ended
from tallrec.types import Instruction

WITH = Instruction("Add the numbers.", "1, 2", "3")
WITHOUT = Instruction("Name a colour.", " ", "\nBlue is one. ")


def test_the_format_is_alpacas():
    assert instruction_prompt("Add.", "1, 2") == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n"
    )
    assert instruction_prompt("Name a colour.") == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nName a colour.\n\n### Response:\n"
    )


@pytest.mark.parametrize("name", ["backbone", "smollm2"])
def test_the_response_begins_after_the_position_and_ends_with_the_end_token(name, request):
    tokenizer = request.getfixturevalue(name).tokenizer
    rows = encode_instructions(tokenizer, [WITH, WITHOUT], max_tokens=512)
    for row, record in zip(rows, (WITH, WITHOUT), strict=True):
        (position,) = row.positions
        prompt = instruction_prompt(record.instruction, record.input.strip())
        assert tokenizer.decode(row.ids[: position + 1]).removeprefix(
            tokenizer.bos_token or ""
        ) in (
            prompt,
            f" {prompt}",
        )
        assert row.ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row.ids[position + 1 : -1]).strip() == record.output.strip()
        assert row.likes == []


def test_a_long_response_is_cut_and_a_prompt_without_room_left_out(backbone):
    (row,) = encode_instructions(backbone.tokenizer, [WITHOUT], max_tokens=512)
    room = row.positions[0] + 3
    (cut,) = encode_instructions(backbone.tokenizer, [WITHOUT], max_tokens=room)
    assert cut.ids == row.ids[:room]
    assert encode_instructions(backbone.tokenizer, [WITHOUT], max_tokens=room - 2) == []


def test_more_records_than_are_tokenized_at_once_keep_their_order(backbone):
    records = [Instruction("Say it.", "", f"word {i}") for i in range(600)]
    rows = encode_instructions(backbone.tokenizer, records, max_tokens=512)
    one_by_one = [
        encode_instructions(backbone.tokenizer, [record], max_tokens=512)[0] for record in records
    ]
    assert rows == one_by_one


def test_ended(backbone):
    (row,) = encode_instructions(backbone.tokenizer, [WITH], max_tokens=512)
    (longer,) = ended([row], 7)
    assert longer.ids == [*row.ids, 7]
    assert longer.positions == row.positions
