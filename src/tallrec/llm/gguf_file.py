"""Models of the LLaMA architecture as GGUF files, the format of llama.cpp and Ollama."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
from gguf.quants import quantize

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KINDS = gguf.GGMLQuantizationType
KINDS = {"float32": _KINDS.F32, "float16": _KINDS.F16, "bfloat16": _KINDS.BF16, "q8_0": _KINDS.Q8_0}
_FILE_TYPES = {
    "float32": gguf.LlamaFileType.ALL_F32,
    "float16": gguf.LlamaFileType.MOSTLY_F16,
    "bfloat16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
# How tokenizer.json cuts text before merging, by what llama.cpp calls that.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}
_CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTES],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA_3}, "behavior": "Isolated"},
        _BYTES | {"use_regex": False},
    ],
}


def write_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    path: Path,
    *,
    kind: str = "bfloat16",
    like: Path | None = None,
    name: str = "tallrec",
) -> None:
    """Writes a transformers LLaMA, without adapters, as one GGUF file.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        path: The file to write.
        kind: How matrices are kept: one of `KINDS`. Vectors are float32.
        like: A GGUF file of the same tokenizer, whose vocabulary is copied.
        name: What the file calls the model.

    Raises:
        ValueError: If the kind is unknown, or the architecture or, without `like`, the tokenizer is
            one that this cannot write.
    """
    if kind not in KINDS:
        raise ValueError(f"a GGUF file's type must be one of {', '.join(KINDS)}; got {kind!r}")
    check_architecture(model)
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=True)
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, model.config)
    if like is not None:
        _copy_vocabulary(writer, like)
    else:
        _add_vocabulary(writer, tokenizer, model.config.vocab_size)
    for tensor_name, tensor in _tensors(model):
        tensor_kind = KINDS[kind] if tensor.ndim == 2 else _KINDS.F32
        writer.add_tensor(tensor_name, quantize(tensor.numpy(), tensor_kind), raw_dtype=tensor_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_architecture(model: PreTrainedModel) -> None:
    """Refuses what `write_gguf` would write wrongly.

    Raises:
        ValueError: If the model is no LLaMA, has biases, or scales its rotary positions.
    """
    config: Any = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    reasons = {
        f"its architecture is {config.model_type}": config.model_type != "llama",
        "its linear layers have biases": any(n.endswith(".bias") for n in model.state_dict()),
        f"its positions are scaled ({rope.get('rope_type')})": rope.get("rope_type", "default")
        != "default",
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(
            f"{model.name_or_path} cannot be written as GGUF here: {found[0]}; supported are "
            f"models of the architecture llama (LLaMA 1 to 3, SmolLM2) without biases and scaled "
            f"positions. Export with --to merged and use llama.cpp's convert_hf_to_gguf.py"
        )


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: PreTrainedModel) -> Iterable[tuple[str, Tensor]]:
    """llama.cpp's name of each tensor, and its values in float32 as llama.cpp wants them."""
    config: Any = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        weight = tensor.float().cpu()
        if "q_proj" in name or "k_proj" in name:  # rotary halves are interleaved there
            heads = weight.shape[0] // config.head_dim
            halves = weight.view(heads, 2, -1, weight.shape[1])
            weight = halves.transpose(1, 2).reshape(weight.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None, name  # `check_architecture` lets no other tensors through
        yield target, weight


def _copy_vocabulary(writer: gguf.GGUFWriter, like: Path) -> None:
    for name, field in gguf.GGUFReader(like).fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)


def _add_vocabulary(
    writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> None:
    """Writes a byte-level BPE vocabulary."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    texts = {id_: text for text, id_ in tokenizer.get_vocab().items()}
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for i, token in tokenizer.added_tokens_decoder.items():
        kinds[i] = gguf.TokenType.CONTROL if token.special else gguf.TokenType.USER_DEFINED
    writer.add_token_types([kinds.get(i, gguf.TokenType.UNUSED) for i in range(vocab_size)])
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=True, n_vocab=vocab_size)
    special.add_to_gguf(writer, quiet=True)
    begins = bool(ids := tokenizer("a").input_ids) and ids[0] == tokenizer.bos_token_id
    writer.add_add_bos_token(begins)
    writer.add_add_space_prefix(False)


def pre_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """What llama.cpp calls the way a byte-level BPE tokenizer cuts text before merging.

    Raises:
        ValueError: If the tokenizer is not of a known kind.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    cuts = parts["pre_tokenizer"] or {}
    steps = cuts["pretokenizers"] if cuts.get("type") == "Sequence" else [cuts]
    for name, wanted in _CUTS.items():
        fits = (want.items() <= step.items() for want, step in zip(wanted, steps, strict=False))
        if parts["model"]["type"] == "BPE" and len(wanted) == len(steps) and all(fits):
            return name
    raise ValueError(
        "this tokenizer cannot be written as GGUF here: supported are those of a backbone that was "
        "read from a GGUF file, and byte-level BPE that cuts text as GPT-2, SmolLM2 or LLaMA 3 do. "
        "Export with --to merged and use llama.cpp's convert_hf_to_gguf.py"
    )
