"""Products of eight bits with frozen weights, forward and backward.

A row of activations, or of their gradients, and a row of weights are each rounded to steps of 1/127
of their largest number (Dettmers et al., 2022, LLM.int8; Wortsman et al., 2023, SwitchBack). A few
channels of a language model are a hundred times as large as the rest, which would be left with few
steps: both are rotated before, which spreads such a channel over 64 and leaves the product what it
was (Ashkboos et al., 2024, QuaRot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, TypeAlias, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tallrec.llm.fused import kernels_of

# Shape letters: n tokens, i inputs and o outputs of a layer.

ROTATED = 64  # numbers that a rotation mixes; widths are multiples of it
_ZERO = 128  # of activations, which are unsigned
Pair: TypeAlias = "tuple[Weight, Weight]"  # of gate and up together, and of down


def _loops() -> ModuleType | None:
    """Compiled products where they are quicker than torch's, or right and torch's are not."""
    kernels = kernels_of(torch.empty(0))
    for loops in (kernels.byte_products, kernels.short_products):
        if loops.IN_USE:
            return cast("ModuleType", loops)
    return None


@dataclass(frozen=True)
class Weight:
    """A layer's weights, or those of several, as a product of eight bits wants them.

    Attributes:
        of: The weights.
        versions: Torch's numbers of their changes.
        loops: Whose product: of compiled loops, or torch's (None).
        packed: Rotated and rounded.
        steps_o: The size of each row's steps; over 64, as both sides of a product are rotated.
    """

    of: list[Tensor]
    versions: list[int]
    loops: ModuleType | None
    packed: Tensor
    steps_o: Tensor

    @classmethod
    def made(
        cls, weight_oi: Tensor, of: Sequence[Tensor], loops: ModuleType | None = None
    ) -> Weight:
        """Rounds the rows of a matrix that is made of some weights, for loops, if not the usual."""
        loops = loops or _loops()
        whole_oi, steps_o1 = (loops or kernels_of(weight_oi)).rounded(weight_oi)
        if loops:
            packed = loops.packed(whole_oi)
        else:
            signed_oi = (whole_oi ^ _ZERO).view(torch.int8)
            packed = torch.ops.onednn.qlinear_prepack(signed_oi, None)
        steps_o = steps_o1.flatten() / ROTATED
        return cls([w.data for w in of], [w._version for w in of], loops, packed, steps_o)

    def is_of(self, weights: Sequence[Tensor]) -> bool:
        """Whether these are the weights, unchanged."""
        held = zip(self.of, self.versions, weights, strict=True)  # so that no other can lie there
        return all(a.data_ptr() == b.data_ptr() and v == b._version for a, v, b in held)

    def product(self, whole: Tensor, dtype: torch.dtype) -> Tensor:
        """y_no of rounded x_ni, each row yet to be scaled by the size of its steps."""
        y: Tensor
        if self.loops:
            y = self.loops.product(whole, self.packed, self.steps_o, dtype)
            return y
        zeros_o = torch.zeros(len(self.steps_o), dtype=torch.int64)
        scales = 1.0, _ZERO, self.packed, self.steps_o, zeros_o
        after: Any = "none", [], ""
        y = torch.ops.onednn.qlinear_pointwise(whole, *scales, None, 1.0, 0, dtype, *after)
        return y

    def times(self, rounded: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
        """y_no of rounded x_ni."""
        y = self.product(rounded[0], dtype)
        scaled: Tensor = kernels_of(y).scaled_(y, rounded[1])
        return scaled


class Inputs:
    """Rounded activations; layers that read the same share them."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._rounded: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rounded by `kernels.rounded`."""
        if self._rounded is None or self._of is not x:
            self._of, self._rounded = x, kernels_of(x).rounded(x)
        return self._rounded


class _Product(torch.autograd.Function):
    """x W'; nothing is kept for the gradient of x, which is all there is."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        rounded: tuple[Tensor, Tensor],
        weight: Weight,
        transposed: Weight,
    ) -> Tensor:
        ctx.transposed = transposed
        return weight.times(rounded, x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        rounded = kernels_of(grads[0]).rounded(grads[0])
        return ctx.transposed.times(rounded, grads[0].dtype), None, None, None


class _Gated(torch.autograd.Function):
    """down(silu(gate) * up); gate and up are one product, and what is rounded is never written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by_rows: Pair, by_columns: Pair | None) -> Tensor:
        kernels, (gate_up, down) = kernels_of(x), by_rows
        whole, steps = kernels.rounded(x)
        both = gate_up.product(whole, x.dtype)
        ctx.by_columns = by_columns
        ctx.save_for_backward(both, steps)
        return down.times(kernels.gated_rounded(both, steps), x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        kernels, (gate_up, down) = kernels_of(grads[0]), ctx.by_columns
        whole, steps = kernels.rounded(grads[0])
        inner = down.product(whole, grads[0].dtype)
        rounded = kernels.gated_backward_rounded(inner, steps, *ctx.saved_tensors)
        return gate_up.times(rounded, grads[0].dtype), None, None


def product(x: Tensor, inputs: Inputs, by_rows: Weight, by_columns: Weight) -> Tensor:
    """The product with W', and backward the gradient of x."""
    y: Tensor = _Product.apply(x, inputs(x), by_rows, by_columns)  # type: ignore[no-untyped-call]
    return y


def gated(x: Tensor, by_rows: Pair, by_columns: Pair | None) -> Tensor:
    """down(silu(gate(x)) * up(x)), and backward, with `by_columns`, the gradient of x."""
    y: Tensor = _Gated.apply(x, by_rows, by_columns)  # type: ignore[no-untyped-call]
    return y


Kept: TypeAlias = WeakKeyDictionary[nn.Module, Weight]
BY_ROWS: Kept = WeakKeyDictionary()
BY_COLUMNS: Kept = WeakKeyDictionary()


def weight_of(module: nn.Module, kept: Kept, *layers: nn.Linear) -> Weight:
    """Rounded weights, made if they are not kept or have changed since.

    Args:
        module: Whose they are.
        kept: `BY_ROWS`, or `BY_COLUMNS` for gradients.
        *layers: Parts of the module whose weights stand below each other; none if it is a layer.
    """
    weights = [layer.weight for layer in layers or (cast("nn.Linear", module),)]
    weight = kept.get(module)
    if weight is None or not weight.is_of(weights):
        whole_oi = torch.cat([w.data for w in weights]) if layers else weights[0].data
        whole_oi = whole_oi.T if kept is BY_COLUMNS else whole_oi
        weight = kept[module] = Weight.made(whole_oi, weights)
    return weight


def gated_pair(mlp: Any, kept: Kept) -> Pair:
    """An MLP's rounded weights for `gated`; see `weight_of`."""
    return weight_of(mlp, kept, mlp.gate_proj, mlp.up_proj), weight_of(mlp.down_proj, kept)


@cache
def works() -> bool:
    """Whether products are right, tried once: without the instructions some processors overflow."""
    x_ni, weight_oi = torch.linspace(-99, 99, 512 * 256).sin().view(2, 256, 256)
    own = x_ni @ weight_oi.T
    try:
        ours = Weight.made(weight_oi, ()).times(kernels_of(x_ni).rounded(x_ni), x_ni.dtype)
    except (AttributeError, RuntimeError):  # a torch without it
        return False
    return bool((ours - own).norm() <= 0.03 * own.norm())
