"""General instructions become token rows whose response is to be learnt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tallrec.prompts.alpaca import instruction_prompt
from tallrec.prompts.answers import CHUNK, TokenRow, require_offsets, tokenize
from tallrec.types import Instruction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_instructions(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Instruction], *, max_tokens: int
) -> list[TokenRow]:
    """Tokenizes instruction records for tuning on their responses.

    The only position of a row is its prompt's last token; the response and the end token follow.
    A response that is too long is cut off (and has no end token), as in the paper's released code.

    Args:
        tokenizer: A fast tokenizer.
        records: What to tokenize.
        max_tokens: The longest row.

    Returns:
        One row a record, without those whose prompt leaves no room for a response.
    """
    require_offsets(tokenizer)
    return [
        row
        for start in range(0, len(records), CHUNK)
        for row in _encode(tokenizer, records[start : start + CHUNK], max_tokens)
    ]


def ended(rows: Iterable[TokenRow], end: int) -> list[TokenRow]:
    """The rows with the end token after their answer, for the losses that learn it."""
    return [replace(row, ids=[*row.ids, end]) for row in rows]


def _encode(
    tokenizer: PreTrainedTokenizerBase, records: Sequence[Instruction], max_tokens: int
) -> Iterator[TokenRow]:
    prompts = [instruction_prompt(r.instruction.strip(), r.input.strip()) for r in records]
    texts = [
        prompt + record.output.strip() for prompt, record in zip(prompts, records, strict=True)
    ]
    for prompt, tokens in zip(prompts, tokenize(tokenizer, texts), strict=True):
        # A token over the border, which no tokenizer is known to write here, is left to the prompt.
        within = (i for i, (start, _) in enumerate(tokens.offsets) if start >= len(prompt))
        first = next(within, len(tokens.ids))
        ids = [*tokens.ids, tokenizer.eos_token_id][:max_tokens]
        if first < len(ids):
            yield TokenRow(ids, [first - 1], [])
