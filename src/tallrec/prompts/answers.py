"""Answers become token ids at the real boundary of a tokenizer, and prompts token rows.

Nothing is searched for in a text: an answer's position is known in characters when the prompt is
rendered, carried through the tokenizer by its offsets, and checked against the resolved answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING

from tallrec.prompts import Prompt, Template
from tallrec.types import Item, Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 256  # rows tokenized at once: their offsets take more memory than their tokens
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
            tokens after the last position are a placeholder). Empty for a general instruction,
            whose response is no Yes or No.
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
    require_offsets(tokenizer)
    prompt = template.render(_PROBE, domain)
    text, slots = join(template, prompt)
    start, piece = slots[-1], prompt.pieces[-1]
    texts = [text[:start] + answer for answer in (template.yes, template.no)]
    yes, no = (
        row.ids[_first_tokens(tokenizer, row, [start], [piece])[0] :]
        for row in tokenize(tokenizer, texts)
    )
    lead = [a for a, b in takewhile(lambda pair: pair[0] == pair[1], zip(yes, no, strict=False))]
    n = len(lead)
    if n == min(len(yes), len(no)) or tokenizer.unk_token_id in (yes[n], no[n]):
        raise ValueError(
            f"this tokenizer cannot tell the answers {template.yes!r} and {template.no!r} apart "
            f"after {piece[-60:]!r}: they become the tokens "
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
        ValueError: If a target does not fit even without history, an answer's tokens are not the
            resolved ones (a tokenizer that merges over the slot's border), or a title becomes one
            of the tokenizer's special tokens.
    """
    encode_all = partial(_encode_all, tokenizer, template, answers, domain)
    rows: list[TokenRow] = []
    remaining = iter(samples)
    while chunk := list(islice(remaining, CHUNK)):
        pairs = zip(chunk, encode_all(chunk), strict=True)
        rows += [_fitted(sample, row, encode_all, max_tokens) for sample, row in pairs]
    return rows


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of a text, and which characters each stands for."""

    ids: list[int]
    offsets: list[tuple[int, int]]


def _encode_all(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    answers: Answers,
    domain: str,
    samples: Sequence[Sample],
) -> list[TokenRow]:
    prompts = [template.render(sample, domain) for sample in samples]
    joined = [join(template, prompt) for prompt in prompts]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    rows = []
    for prompt, (text, slots), tokens in zip(
        prompts, joined, tokenize(tokenizer, [text for text, _ in joined]), strict=True
    ):
        _refuse_special(tokenizer, special, tokens, text)
        firsts = _first_tokens(tokenizer, tokens, slots, prompt.pieces)
        for first, piece, like in zip(firsts, prompt.pieces, prompt.likes, strict=True):
            wanted = answers.ids(like is not False)
            found = tokens.ids[first : first + len(wanted)]
            if tuple(found) != wanted:
                raise ValueError(
                    f"after {piece[-60:]!r} this tokenizer writes "
                    f"{tokenizer.convert_ids_to_tokens(found)} where "
                    f"{tokenizer.convert_ids_to_tokens(list(wanted))} was resolved as the answer"
                )
        positions = [first + len(answers.lead) - 1 for first in firsts]
        rows.append(TokenRow(tokens.ids, positions, list(prompt.likes)))
    return rows


def _fitted(
    sample: Sample,
    row: TokenRow,
    encode_all: Callable[[list[Sample]], list[TokenRow]],
    max_tokens: int,
) -> TokenRow:
    """The row, or the longest that fits with the latest history."""
    while len(row.ids) > max_tokens:
        dropped = row.dropped + 1
        if dropped > len(sample.history):
            raise ValueError(
                f"the prompt of user {sample.user!r} and item {sample.target.id!r} has "
                f"{len(row.ids)} tokens without any history, but at most {max_tokens} fit"
            )
        shorter = replace(sample, history=sample.history[dropped:])
        row = replace(encode_all([shorter])[0], dropped=dropped)
    return row


def join(template: Template, prompt: Prompt) -> tuple[str, list[int]]:
    """The whole text and, in characters, where each answer begins. An unknown answer reads Yes."""
    text, slots = "", []
    for piece, like in zip(prompt.pieces, prompt.likes, strict=True):
        text += piece
        slots.append(len(text))
        text += template.no if like is False else template.yes
    return text, slots


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Tokens]:
    """Tokenizes texts; none of their characters becomes one of the tokenizer's special tokens."""
    # A title that spells a special token ("</s>") must not become one.
    batch = tokenizer(texts, return_offsets_mapping=True, split_special_tokens=True, verbose=False)
    return [Tokens(*row) for row in zip(batch["input_ids"], batch["offset_mapping"], strict=True)]


def _first_tokens(
    tokenizer: PreTrainedTokenizerBase, tokens: Tokens, slots: list[int], pieces: Sequence[str]
) -> list[int]:
    """The first token of the answer at each slot; slots ascend, and follow their pieces."""
    firsts, i = [], 0
    for slot, piece in zip(slots, pieces, strict=True):
        while i < len(tokens.ids) and tokens.offsets[i][1] <= slot:
            i += 1
        if i == len(tokens.ids):
            raise ValueError(f"this tokenizer writes no token for the answer after {piece[-60:]!r}")
        if tokens.offsets[i][0] < slot:
            merged = tokenizer.convert_ids_to_tokens(tokens.ids[i])
            raise ValueError(
                f"after {piece[-60:]!r} this tokenizer merges the answer with the text before it "
                f"and writes {merged!r}; use another template"
            )
        firsts.append(i)
    return firsts


def _refuse_special(
    tokenizer: PreTrainedTokenizerBase, special: set[int], tokens: Tokens, text: str
) -> None:
    """Unigram tokenizers find special tokens in plain text too, whatever they are told."""
    for id_, (start, end) in zip(tokens.ids, tokens.offsets, strict=True):
        if id_ in special and start < end:
            raise ValueError(
                f"a title becomes the special token {tokenizer.convert_ids_to_tokens(id_)!r} of "
                f"this tokenizer: {text[max(0, start - 40) : end + 40]!r}; rename that title"
            )


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that cannot say which characters a token stands for.

    Raises:
        ValueError: If it is not a fast one.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} gives no character offsets, which place the answers: "
            f"use the fast version of this tokenizer (a folder with tokenizer.json)"
        )
