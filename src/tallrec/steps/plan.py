"""What a recipe needs of memory, whether that is there, and what would make it fit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tallrec.llm.backbone import choose_device, choose_dtype
from tallrec.llm.estimate import Memory, Setup, scoring_memory, tuning_memory
from tallrec.llm.shape import Shape, read_shape
from tallrec.recipe import InstructionsStage, Recipe
from tallrec.steps.data import Say, backbone_source

_DEVICES = (2, 4, 8, 16)  # that are tried for sharding


@dataclass(frozen=True)
class Plan:
    """Estimates of a recipe.

    Attributes:
        parts: Memory of each stage, `stage 0` and so on, and of `scoring`.
        room: Bytes of one device.
        advice: `--set` options, each with what it would come to, where the recipe does not fit.
    """

    parts: dict[str, Memory]
    room: float
    advice: tuple[tuple[str, float], ...]

    @property
    def need(self) -> float:
        """The most bytes that any part needs."""
        return max(part.total for part in self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether all parts find room."""
        return self.need <= self.room


def plan_recipe(
    recipe: Recipe,
    *,
    memory: float | None = None,
    devices: int = 1,
    tokens: int | None = None,
    say: Say = print,
) -> Plan:
    """Estimates the memory of a recipe from its backbone's config.json; no weights are read.

    Args:
        recipe: What would be run.
        memory: Bytes of one device; those of this machine's GPU, or of the machine, unless given.
        devices: How many processes would tune, each on its device.
        tokens: Tokens of the longest row; the most that the recipe allows unless given.
        say: Shows a line to the user.

    Raises:
        ValueError: If the backbone's config cannot be read, or the devices cannot share a batch.
    """
    shape = read_shape(str(backbone_source(recipe.backbone.source, say=say)))
    room = memory or _room(recipe)
    parts = _parts(recipe, shape, devices, tokens)
    plan = Plan(parts, room, ())
    if plan.fits:
        return plan
    return Plan(parts, room, tuple(_advice(recipe, shape, room, devices, tokens)))


def in_bytes(text: str) -> float:
    """The bytes of a size such as `24GB` or `80GiB`.

    Raises:
        ValueError: If it is none.
    """
    units = {"GB": 1e9, "GIB": 2**30, "MB": 1e6, "MIB": 2**20}
    number, unit = text.upper().rstrip("BIGM"), text.upper().lstrip("0123456789. ")
    try:
        size = float(number) * units[unit]
    except (ValueError, KeyError):
        raise ValueError(f"--memory takes a size such as 24GB or 80GiB; got {text!r}") from None
    if size <= 0:
        raise ValueError(f"--memory must be above nothing; got {text!r}")
    return size


def _room(recipe: Recipe) -> float:
    device = choose_device(recipe.backbone.device)
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _parts(recipe: Recipe, shape: Shape, devices: int, tokens: int | None) -> dict[str, Memory]:
    backbone = recipe.backbone
    device = choose_device(backbone.device)
    setup = Setup(
        dtype=str(choose_dtype(backbone.dtype, device, int8=recipe.in_int8)).removeprefix("torch."),
        quantize=backbone.quantize,
        shards=devices if backbone.shard == "fsdp" else 1,
        rank=recipe.lora.rank,
        targets=recipe.lora.targets,
    )
    longest = tokens or backbone.max_tokens
    parts = {}
    for number, stage in enumerate(recipe.stages):
        if stage.batch_size % devices:
            raise ValueError(
                f"{devices} devices cannot share batches of {stage.batch_size} equally: make "
                f"stages.{number}.batch_size a multiple of {devices}"
            )
        most = tokens or stage.max_tokens if isinstance(stage, InstructionsStage) else longest
        parts[f"stage {number}"] = tuning_memory(
            shape,
            setup,
            rows=min(stage.micro_batch, stage.batch_size // devices),
            tokens=most,
            loss=stage.loss,
            checkpointing=stage.gradient_checkpointing,
            int8=stage.int8,
        )
    evaluation = recipe.evaluation
    parts["scoring"] = scoring_memory(
        shape,
        setup,
        batch_tokens=evaluation.batch_tokens,
        tokens=longest,
        ordering=evaluation.ordering,
        int8=evaluation.int8,
    )
    return parts


def _advice(
    recipe: Recipe, shape: Shape, room: float, devices: int, tokens: int | None
) -> Iterator[tuple[str, float]]:
    """Changes, from the mildest on, and what they come to; ends with the first that is enough."""
    for change, changed, on in _changes(recipe, devices):
        try:
            parts = _parts(changed, shape, on, tokens)
        except ValueError:  # so many devices cannot share the batch
            continue
        need = max(part.total for part in parts.values())
        yield change, need
        if need <= room:
            return


def _changes(recipe: Recipe, devices: int) -> Iterator[tuple[str, Recipe, int]]:
    words: list[str] = []

    def change(more: str, stages: dict[str, Any], **backbone: Any) -> tuple[str, Recipe, int]:
        nonlocal recipe
        words.append(more)
        recipe = recipe.model_copy(
            update={
                "stages": tuple(stage.model_copy(update=stages) for stage in recipe.stages),
                "backbone": recipe.backbone.model_copy(update=backbone),
                "evaluation": recipe.evaluation.model_copy(update={"batch_tokens": 1024}),
            }
        )
        return ", ".join(words), recipe, devices

    yield change("micro_batch=1 and evaluation.batch_tokens=1024", {"micro_batch": 1})
    yield change("gradient_checkpointing=true", {"gradient_checkpointing": True})
    if recipe.backbone.shard == "none":
        for kind in ("int8", "nf4"):
            if recipe.backbone.quantize != "nf4":
                yield change(f"backbone.quantize={kind}", {}, quantize=kind)
    for count in (n for n in _DEVICES if n > devices):
        text, plain, _ = change(
            f"backbone.shard=fsdp on {count} devices", {}, quantize="none", shard="fsdp"
        )
        yield text, plain, count
        words.pop()
