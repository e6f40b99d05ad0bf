"""How much memory tuning and scoring need on each device: arithmetic on a model's shape.

Checked on a CPU by benchmarks/memory.py; the layers counted are those of Llama and its relatives.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from tallrec.llm.shape import Shape

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# A weight of LLM.int8, of nf4 with doubly quantized scales (Dettmers et al., 2023: 0.127 bits).
_QUANTIZED = {"int8": 1.0, "nf4": (4 + 0.127) / 8}
_RUNTIME = 500 * 10**6  # Python, torch and transformers themselves; on a GPU its context
_ADAPTER = 16  # bytes a parameter in float32: itself, its gradient, AdamW's two moments


@dataclass(frozen=True)
class Setup:
    """What memory depends on besides the model.

    Attributes:
        dtype: A key of `BYTES`.
        quantize: `none`, `int8` or `nf4`.
        shards: Over how many processes the frozen weights are spread; 1 is not at all.
        rank: Of the adapter.
        targets: The modules that it changes.
    """

    dtype: str
    quantize: str
    shards: int
    rank: int
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, at the moment when most is needed.

    Attributes:
        runtime: The program itself.
        weights: The frozen weights, or the device's part of them, and what is whole of them.
        adapter: The adapter, its gradients and the optimizer.
        activations: What the backward pass needs of the forward pass.
        passing: What a layer, or the head, needs while it computes.
        cache: Keys and values kept from one batch of scoring to the next.
    """

    runtime: float = 0.0
    weights: float = 0.0
    adapter: float = 0.0
    activations: float = 0.0
    passing: float = 0.0
    cache: float = 0.0

    @property
    def total(self) -> float:
        """All together."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def tuning_memory(
    shape: Shape,
    setup: Setup,
    *,
    rows: int,
    tokens: int,
    loss: str,
    checkpointing: bool,
    int8: bool = False,
) -> Memory:
    """Memory of a step of tuning.

    Args:
        shape: The model.
        setup: How it is held and what is tuned.
        rows: Rows in one forward pass.
        tokens: Tokens of a row, at most.
        loss: A key of `LOSSES`; all but `answers` compute logits of the whole vocabulary.
        checkpointing: Whether the backward pass computes each layer's activations again.
        int8: Whether weights are held twice in eight bits as well, to multiply with.
    """
    n = rows * tokens
    size = BYTES[setup.dtype]
    parameters = shape.adapter(setup.rank, setup.targets)[0]
    layer = n * _layer(shape, setup)
    boundary = n * shape.hidden * size
    kept = shape.layers * boundary + layer if checkpointing else shape.layers * layer
    # Gradients of the feed-forward part's three inner tensors, and of the hidden states.
    passing: float = n * size * (3 * shape.inner + 2 * shape.hidden)
    if setup.quantize != "none":  # a module's weights, as they are computed with
        passing += shape.inner * shape.hidden * size
    if loss != "answers":
        # Logits, their softmax and its gradient in float32, and the head in float32.
        logits = n * shape.vocabulary * 4 * 3
        passing = max(passing, logits + _float_head(shape, size))
    return Memory(
        runtime=_RUNTIME,
        weights=_weights(shape, setup) + (2 * shape.in_layers if int8 else 0),
        adapter=_ADAPTER * parameters,
        activations=kept,
        passing=passing,
    )


def _layer(shape: Shape, setup: Setup) -> float:
    """Bytes a token that a layer keeps for its backward pass.

    A frozen linear module keeps nothing. Each of the two norms keeps its input; adapters theirs
    where no norm gives it; attention its queries, keys and values; the gated feed-forward part what
    comes out of the gate and beside it. Sharded layers are the model's own (`tallrec.llm.lean`):
    norms keep float32, adapters all that they read, and the feed-forward part the activation too.
    """
    size, lean = BYTES[setup.dtype], setup.shards == 1
    *_, normed, others = shape.adapter(setup.rank, setup.targets)
    inputs = others if lean else normed + others
    norms = 2 * shape.hidden * (size if lean else 4)
    attention = shape.hidden + 2 * shape.kv
    return norms + (inputs + attention + (2 if lean else 3) * shape.inner) * size


def scoring_memory(
    shape: Shape,
    setup: Setup,
    *,
    batch_tokens: int,
    tokens: int,
    ordering: str,
    int8: bool = False,
) -> Memory:
    """Memory of scoring with one process, which holds all weights.

    Args:
        shape: The model.
        setup: How it is held, and the adapter that is merged into it.
        batch_tokens: Tokens in one forward pass.
        tokens: Tokens of a row, at most; of these, keys and values are kept.
        ordering: `log-odds`, or `released`, which computes logits of the whole vocabulary.
        int8: Whether weights are held in eight bits as well, to multiply with.
    """
    size = BYTES[setup.dtype]
    n = max(batch_tokens, tokens)
    parameters, changed, *_ = shape.adapter(setup.rank, setup.targets)
    whole = Setup(**{**vars(setup), "shards": 1})
    passing: float = n * size * (3 * shape.inner + 4 * shape.hidden)
    if ordering == "released":
        passing += n / tokens * shape.vocabulary * 4 * 2 + _float_head(shape, size)
    merged = changed * size if setup.quantize == "none" else 0  # beside the weights as they were
    return Memory(
        runtime=_RUNTIME,
        weights=_weights(shape, whole) + merged + (shape.in_layers if int8 else 0),
        adapter=4 * parameters,
        passing=passing,
        cache=shape.layers * 2 * shape.kv * size * tokens,
    )


def _weights(shape: Shape, setup: Setup) -> float:
    size = BYTES[setup.dtype]
    others = (shape.parameters - shape.in_layers) * size
    layers = shape.in_layers * _QUANTIZED.get(setup.quantize, size)
    if setup.shards == 1:
        return others + layers
    # Whole are the layer that computes, the next one on its way, and what is outside the layers.
    return (others + layers) / setup.shards + others + 2 * layers / shape.layers


def _float_head(shape: Shape, size: int) -> float:
    return shape.vocabulary * shape.hidden * 4 if size < 4 else 0.0
