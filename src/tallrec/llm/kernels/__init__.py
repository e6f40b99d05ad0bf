"""What a decoder does between its matrix products, each in one pass over the activations.

On a CPU, in bfloat16 and float32 (`tallrec.llm.fused` tells); computed in float32 and rounded once.
"""

from tallrec.llm.kernels import byte_products, mixed_products, mixed_rows, short_products
from tallrec.llm.kernels.attention import add_rows_, softmax_, softmax_backward_
from tallrec.llm.kernels.begun import Begins, begun
from tallrec.llm.kernels.byte_rows import Packed
from tallrec.llm.kernels.finished import finished
from tallrec.llm.kernels.finished_slopes import finished_backward
from tallrec.llm.kernels.int8 import gated_backward_rounded, gated_rounded, rounded, scaled_
from tallrec.llm.kernels.layers import (
    gated,
    gated_backward,
    in_order,
    norm,
    norm_backward,
    rotated,
)
from tallrec.llm.kernels.lora import COLUMNS, adapted_, adapted_backward, drawn, without
from tallrec.llm.kernels.projected import Stacked, projected
from tallrec.llm.kernels.projected_slopes import projected_backward
from tallrec.llm.kernels.tiles import in_tiles
from tallrec.llm.kernels.tree_attention import attend, attends
from tallrec.llm.kernels.tree_slopes import attend_backward
from tallrec.llm.kernels.whole_layers import (
    added,
    added_norm,
    added_norm_rounded,
    norm_backward_added,
    norm_rounded,
)

__all__ = [
    "COLUMNS",
    "Begins",
    "Packed",
    "Stacked",
    "adapted_",
    "adapted_backward",
    "add_rows_",
    "added",
    "added_norm",
    "added_norm_rounded",
    "attend",
    "attend_backward",
    "attends",
    "begun",
    "byte_products",
    "drawn",
    "finished",
    "finished_backward",
    "gated",
    "gated_backward",
    "gated_backward_rounded",
    "gated_rounded",
    "in_order",
    "in_tiles",
    "mixed_products",
    "mixed_rows",
    "norm",
    "norm_backward",
    "norm_backward_added",
    "norm_rounded",
    "projected",
    "projected_backward",
    "rotated",
    "rounded",
    "scaled_",
    "short_products",
    "softmax_",
    "softmax_backward_",
    "without",
]
