"""Only what llama.cpp would read rightly is written as GGUF."""

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from tallrec.llm.gguf_file import _LLAMA_3, check_architecture, pre_tokenizer
from tests.tiny import byte_level_tokenizer

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
MERELY_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("cuts", "name"),
    [
        (BYTES, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTES]), "smollm"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"), MERELY_BYTES]
            ),
            "llama-bpe",
        ),
    ],
)
def test_known_ways_to_cut_text_have_llama_cpps_name(cuts, name):
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = cuts
    assert pre_tokenizer(tokenizer) == name


@pytest.mark.parametrize(
    "cuts",
    [
        MERELY_BYTES,
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(False), BYTES]),
    ],
)
def test_other_ways_are_refused(cuts):
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = cuts
    with pytest.raises(ValueError, match=r"byte-level BPE .* Export with --to merged"):
        pre_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2), "its architecture is gpt2"),
        (LlamaConfig(**SIZES, attention_bias=True), "its linear layers have biases"),
        (
            LlamaConfig(
                **SIZES,
                rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
            ),
            r"its positions are scaled \(linear\)",
        ),
    ],
)
def test_models_that_would_be_written_wrongly_are_refused(config, reason):
    with pytest.raises(ValueError, match=f"{reason}; supported are"):
        check_architecture(AutoModelForCausalLM.from_config(config))
