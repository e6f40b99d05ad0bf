"""Answers become token ids at the real boundary of a tokenizer, and prompts token rows.

Nothing is searched for in a text: an answer's position is known in characters when the prompt is
rendered, carried through the tokenizer by its offsets, and checked against the resolved answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from tallrec.prompts import Prompt, Template
from tallrec.types import Item, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = Sample("", ((Item("", "A"), True), (Item("", "B"), False)), Item("", "C"))


@dataclass(frozen=True)
class Answers:
    """The verbalizer of a tokenizer: which token says Yes and which says No at an answer slot.

    Attributes:
        yes: Token id of a like.
        no: Token id of a dislike.
        lead: Tokens that both answers begin with (a lone space, say); they belong to the prompt.
    """

    yes: int
    no: int
    lead: tuple[int, ...] = ()

    def ids(self, liked: bool) -> tuple[int, ...]:
        """The answer's first tokens, up to the one that tells Yes from No."""
        return (*self.lead, self.yes if liked else self.no)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenized sample with the positions of its answers.

    Attributes:
        ids: Token ids, the answers included.
        positions: Index of the token after which the model must predict each answer; the last
            belongs to the target. The answer's token stands at `position + 1`.
        likes: The answer at each position; the last is None where it is not known (then the
            tokens after the last position are a placeholder).
        dropped: How many of the oldest history items did not fit.
    """

    ids: list[int]
    positions: list[int]
    likes: list[bool | None]
    dropped: int = 0

    @property
    def prompt(self) -> list[int]:
        """The tokens up to the target's answer, which the model predicts next."""
        return self.ids[: self.positions[-1] + 1]


def resolve_answers(tokenizer: PreTrainedTokenizerBase, template: Template, domain: str) -> Answers:
    """Finds the token at which the two answered prompts first differ.

    Args:
        tokenizer: A fast tokenizer.
        template: Gives the prompt and the answers' texts.
        domain: The noun for an item.

    Raises:
        ValueError: If no single token tells the answers apart there; the tokens are named.
    """
    _require_offsets(tokenizer)
    prompt = template.render(_PROBE, domain)
    text, slots = _join(template, prompt)
    start = slots[-1]
    rows = [
        _tokenize(tokenizer, [text[:start] + answer])[0] for answer in (template.yes, template.no)
    ]
    firsts = [_first_token(tokenizer, row, start, prompt.pieces[-1]) for row in rows]
    yes, no = (ids[first:] for (ids, _), first in zip(rows, firsts, strict=True))
    lead = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(yes, no, strict=False))]
    n = len(lead)
    unknown = tokenizer.unk_token_id
    if n == min(len(yes), len(no)) or unknown in (yes[n], no[n]):
        raise ValueError(
            f"this tokenizer cannot tell the answers {template.yes!r} and {template.no!r} apart "
            f"after {prompt.pieces[-1]!r}: they become the tokens "
            f"{tokenizer.convert_ids_to_tokens(yes)} and {tokenizer.convert_ids_to_tokens(no)}; "
            f"use another template or backbone"
        )
    return Answers(yes[n], no[n], tuple(lead))


def encode(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    answers: Answers,
    samples: Iterable[Sample],
    *,
    domain: str,
    max_tokens: int,
) -> list[TokenRow]:
    """Tokenizes samples; a row that is too long loses its oldest history, never target or answer.

    Args:
        tokenizer: The tokenizer that `answers` were resolved with.
        template: How a sample becomes text.
        answers: From `resolve_answers`.
        samples: What to tokenize.
        domain: The noun for an item.
        max_tokens: The longest row, answers included.

    Raises:
        ValueError: If a target does not fit even without history, or an answer's tokens are not
            the resolved ones (a tokenizer that merges over the slot's border).
    """
    samples = list(samples)
    rows = _encode_all(tokenizer, template, answers, samples, domain)
    for i, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        while len(rows[i].ids) > max_tokens:
            dropped = rows[i].dropped + 1
            if dropped > len(sample.history):
                raise ValueError(
                    f"the prompt of user {sample.user!r} and item {sample.target.id!r} has "
                    f"{len(rows[i].ids)} tokens without any history, but at most {max_tokens} fit"
                )
            shorter = replace(sample, history=sample.history[dropped:])
            row = _encode_all(tokenizer, template, answers, [shorter], domain)[0]
            rows[i] = replace(row, dropped=dropped)
    return rows


def _encode_all(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    answers: Answers,
    samples: Sequence[Sample],
    domain: str,
) -> list[TokenRow]:
    prompts = [template.render(sample, domain) for sample in samples]
    joined = [_join(template, prompt) for prompt in prompts]
    tokens = _tokenize(tokenizer, [text for text, _ in joined])
    rows = []
    for prompt, (_, slots), (ids, offsets) in zip(prompts, joined, tokens, strict=True):
        positions = []
        for piece, slot, like in zip(prompt.pieces, slots, prompt.likes, strict=True):
            first = _first_token(tokenizer, (ids, offsets), slot, piece)
            wanted = answers.ids(like is not False)
            if tuple(ids[first : first + len(wanted)]) != wanted:
                found = tokenizer.convert_ids_to_tokens(ids[first : first + len(wanted)])
                raise ValueError(
                    f"after {piece[-60:]!r} this tokenizer writes {found} where "
                    f"{tokenizer.convert_ids_to_tokens(list(wanted))} was resolved as the answer"
                )
            positions.append(first + len(answers.lead) - 1)
        rows.append(TokenRow(ids, positions, list(prompt.likes)))
    return rows


def _join(template: Template, prompt: Prompt) -> tuple[str, list[int]]:
    """The whole text and, in characters, where each answer begins. An unknown answer reads Yes."""
    text, slots = "", []
    for piece, like in zip(prompt.pieces, prompt.likes, strict=True):
        text += piece
        slots.append(len(text))
        text += template.no if like is False else template.yes
    return text, slots


def _tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> list[tuple[list[int], list[tuple[int, int]]]]:
    # A title that spells a special token ("</s>") must not become one.
    batch = tokenizer(texts, return_offsets_mapping=True, split_special_tokens=True)
    return list(zip(batch["input_ids"], batch["offset_mapping"], strict=True))


def _first_token(
    tokenizer: PreTrainedTokenizerBase,
    row: tuple[list[int], list[tuple[int, int]]],
    slot: int,
    piece: str,
) -> int:
    ids, offsets = row
    first = next(i for i, (_, end) in enumerate(offsets) if end > slot)
    if offsets[first][0] < slot:
        raise ValueError(
            f"this tokenizer merges the answer with the text before it: after {piece[-60:]!r} it "
            f"writes {tokenizer.convert_ids_to_tokens(ids[first])!r}; use another template"
        )
    return first


def _require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, which place the answers: "
            f"use the fast version of this tokenizer (a folder with tokenizer.json)"
        )
