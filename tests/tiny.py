"""A tiny real language model: two random Llama layers and a tokenizer trained on a few lines."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEXT = (
    'Movies that a user watched, and whether the user liked each one.\n"Sea 1": Yes\n"Hill 2": No',
    'Whether the user will like the target movie "Hill 2"?\n\n### Response:\nYes.\nNo.',
    '"Sea 3": Yes\n"Hill 4": Yes\n"Sea 5": No\n"Hill 6": No',
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE like GPT-2's, in which ` Yes`, ` No`, `Yes` and `No` are single tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 20, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Writes the model and its tokenizer as an ordinary model folder."""
    tokenizer = byte_level_tokenizer()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
