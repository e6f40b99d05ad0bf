"""What a model is like by its config.json alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tallrec.llm.backbone import locate

# Modules that read what a norm gives, by the norm.
_READS = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "input_layernorm"),
    **dict.fromkeys(("gate_proj", "up_proj"), "post_attention_layernorm"),
}


@dataclass(frozen=True)
class Shape:
    """The sizes that memory depends on.

    Attributes:
        parameters: All of the model's parameters.
        in_layers: Those of the linear modules of its layers, which quantization makes smaller.
        layers: How many layers it has.
        hidden: Width of the hidden states.
        inner: Width inside a layer's feed-forward part.
        kv: Width of keys, and of values: fewer than `hidden` where heads share them.
        vocabulary: How many tokens there are.
        linears: Of each linear module of the layers: its name's last part, width in and out.
    """

    parameters: int
    in_layers: int
    layers: int
    hidden: int
    inner: int
    kv: int
    vocabulary: int
    linears: tuple[tuple[str, int, int], ...]

    def adapter(self, rank: int, targets: tuple[str, ...]) -> tuple[int, int, int, int]:
        """Of a LoRA adapter: its parameters, those of the weights it changes, what it reads.

        That is the width of its inputs in a layer, of those that norms give and of the others;
        modules that read the same tensor count once.

        Raises:
            ValueError: If no linear module has a target's name.
        """
        everything = targets == ("all-linear",)
        mine = [linear for linear in self.linears if everything or linear[0] in targets]
        if not mine:
            names = sorted({name for name, _, _ in self.linears})
            raise ValueError(
                f"lora.targets: there are only {', '.join(names)}, or all-linear alone"
            )
        inputs = {_READS.get(name, name): n_in for name, n_in, _ in mine}
        normed = sum(n_in for name, n_in in inputs.items() if name in _READS.values())
        return (
            sum(rank * (n_in + n_out) for _, n_in, n_out in mine),
            sum(n_in * n_out for _, n_in, n_out in mine),
            normed,
            sum(inputs.values()) - normed,
        )


def read_shape(source: str) -> Shape:
    """The shape of a model folder, GGUF file or model of the hub, of which the config is read.

    Raises:
        ValueError: If there is no readable config of a causal language model.
    """
    folder, gguf = locate(source)
    options: dict[str, Any] = {"gguf_file": gguf.name} if gguf else {}
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **options)
        return shape_of(config)
    except Exception as error:  # a broken file breaks its reader in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = "folder" if Path(folder).is_dir() else "model of the hub"
        raise ValueError(
            f"cannot read a causal language model's config.json from {source} ({reason}): give a "
            f"{what} with one; its weights need not be there"
        ) from error


def shape_of(config: Any) -> Shape:
    """The shape of a model with a config of transformers; it is built without memory."""
    causal: Any = AutoModelForCausalLM  # untyped
    with torch.device("meta"):
        model = causal.from_config(config, trust_remote_code=False)
    text = config.get_text_config()
    head = model.get_output_embeddings()
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head:
            n_in, n_out = module.weight.shape[::-1]
            if isinstance(module, Conv1D):
                n_in, n_out = n_out, n_in
            linears.append((name.rsplit(".", 1)[-1], n_in, n_out))
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        in_layers=sum(n_in * n_out for _, n_in, n_out in linears),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        kv=(getattr(text, "num_key_value_heads", None) or heads) * width,
        vocabulary=text.vocab_size,
        linears=tuple(linears),
    )
