"""Tokenizers of the kinds that language models have, each small enough to read."""

from collections.abc import Callable
from itertools import count

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_level_tokenizer

NAMES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = tuple(NAMES.values())
UNKNOWN = {"unk_token": "<unk>"}
CHARACTERS = "▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789\".,:;?!#()'/<>|_&-"
DECODER = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **NAMES)


def add_bos(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and nothing else: an answer is several tokens, and both begin with the space."""
    vocabulary = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab=dict(zip(vocabulary, count())), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    add_bos(tokenizer)
    return wrap(tokenizer)


def sentencepiece_bpe(extra_merges: tuple[tuple[str, str], ...] = ()) -> PreTrainedTokenizerFast:
    """Like Llama 2's: `▁` for a space, one in front of all, bytes for what is not in it, BOS."""
    merges = [("Y", "e"), ("Ye", "s"), ("▁", "Yes"), ("N", "o"), ("▁", "No"), *extra_merges]
    pieces = [*SPECIAL, *BYTES, *CHARACTERS, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(zip(pieces, count())),
            merges=merges,
            fuse_unk=True,
            byte_fallback=True,
            **UNKNOWN,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = DECODER
    tokenizer.add_special_tokens(list(SPECIAL))
    add_bos(tokenizer)
    return wrap(tokenizer)


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other kind, with Metaspace. Special tokens are pieces of its vocabulary."""
    pieces = [
        *((token, 0.0) for token in SPECIAL),
        *((byte, -20.0) for byte in BYTES),
        *((character, -10.0) for character in CHARACTERS),
        *((word, -5.0) for word in ("Yes", "No", "▁Yes", "▁No")),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = DECODER
    tokenizer.add_special_tokens(list(SPECIAL))
    add_bos(tokenizer)
    return wrap(tokenizer)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte-level BPE": byte_level_tokenizer,
    "bytes": byte_tokenizer,
    "sentencepiece BPE": sentencepiece_bpe,
    "unigram": unigram,
}
