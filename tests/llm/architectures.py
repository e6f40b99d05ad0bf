"""Tiny random models of families that read, scale or cap their logits in ways of their own."""

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
)

SIZE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # logits of a size at which scaling and capping show
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL = {"vocab_size": 64, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2}
GEMMA = {**SIZE, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "gemma3": Gemma3TextConfig(**GEMMA, layer_types=ALTERNATING),
    "gemma2": Gemma2Config(
        **GEMMA,
        layer_types=ALTERNATING,
        final_logit_softcapping=3.0,
        attn_logit_softcapping=5.0,
        attn_implementation="eager",  # torch's own attention has no soft-capping
    ),
    "granite": GraniteConfig(**SIZE, logits_scaling=4.0, attention_multiplier=0.2),
    "cohere": CohereConfig(**SIZE, logit_scale=0.25),
    "gpt2": GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=4, n_positions=256),
    "phi": PhiConfig(**SIZE),
    "bloom": BloomConfig(**SMALL, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**SMALL, hidden_size=32, num_hidden_layers=2, state_size=8),
}


def tiny_model(name: str) -> PreTrainedModel:
    """A random model of a family, in float32."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    head = model.get_output_embeddings()
    if head.bias is not None:
        torch.nn.init.normal_(head.bias)
    return model
