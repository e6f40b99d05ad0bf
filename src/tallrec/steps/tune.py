"""The tuning step: shots in, a proven adapter out, for each seed of a recipe."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tallrec.data.prepared import Prepared, read_prepared
from tallrec.data.samples import draw_shots, reorder
from tallrec.llm.adapter import AdapterCard, attach_lora, load_adapter, save_adapter
from tallrec.llm.backbone import Backbone, load_backbone
from tallrec.llm.scoring import LlmScorer
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.progress import shown
from tallrec.prompts import get_template
from tallrec.prompts.answers import resolve_answers
from tallrec.recipe import Recipe
from tallrec.run import RunDir, create_run
from tallrec.steps.data import Say, backbone_source, prepare_recipe
from tallrec.types import Samples

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PROBE_ROWS = 8
# Reloaded weights are the same bits, but batches of other shapes round differently in bfloat16.
_RELOAD_TOLERANCE = 1e-3


def tune_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> RunDir:
    """Tunes one adapter for each seed of a recipe; continues a run that was cut off.

    Args:
        recipe: What to do.
        out: The run directory.
        data: A prepared folder instead of the recipe's own data.
        backbone: The recipe's backbone, if it is loaded already.
        say: Shows a line to the user.

    Raises:
        ValueError: If something is not right; see the steps that raise it.
    """
    run = create_run(out, recipe)
    folder = data or prepare_recipe(recipe.data, out / "data", say=say)
    prepared = read_prepared(folder)
    known = run.info.get("data")
    if known and known["sha256"] != prepared.hashes:
        raise ValueError(f"{out} was begun on other data than {folder}: give another --out")
    backbone = backbone or load(recipe, say=say)
    run.add(
        data={"folder": str(folder.resolve()), "sha256": prepared.hashes},
        backbone={
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
            "device": str(backbone.model.device),
        },
    )
    for seed in recipe.seeds:
        if not (run.seed(seed) / "adapter").is_dir():
            _tune_seed(run, backbone, prepared, seed, say)
    return run


def load(recipe: Recipe, *, say: Say = print) -> Backbone:
    """Loads the backbone of a recipe."""
    source = recipe.backbone.source
    say(f"Loading {source}")
    return load_backbone(
        backbone_source(source, say=say),
        name=source,
        dtype=recipe.backbone.dtype,
        device=recipe.backbone.device,
    )


def scorer_of(
    recipe: Recipe, backbone: Backbone, model: PreTrainedModel | PeftModel, domain: str
) -> LlmScorer:
    """The scorer of a recipe around a loaded model, with or without an adapter."""
    template = get_template(recipe.template)
    return LlmScorer(
        model=model,
        tokenizer=backbone.tokenizer,
        template=template,
        answers=resolve_answers(backbone.tokenizer, template, domain),
        domain=domain,
        max_tokens=min(recipe.backbone.max_tokens, backbone.max_positions),
        ordering=recipe.evaluation.ordering,
        batch_tokens=recipe.evaluation.batch_tokens,
    )


def shots_of(recipe: Recipe, prepared: Prepared, seed: int) -> tuple[Samples, Samples | None]:
    """The shots of a seed: rows to tune on and rows to stop on, None without validation."""
    shots = draw_shots(
        prepared.splits.train, recipe.shots.count, seed=seed, stratify=recipe.shots.stratify
    )
    if recipe.shots.validation == "paper":
        return shots, prepared.splits.valid
    if recipe.shots.validation == "none":
        return shots, None
    held_out = max(1, round(len(shots) * recipe.shots.validation_share))
    if held_out >= len(shots):
        raise ValueError(
            f"{len(shots)} shots cannot be split into tuning and validation rows: draw more, "
            f"lower shots.validation_share, or set shots.validation to none"
        )
    return shots[: len(shots) - held_out], shots[len(shots) - held_out :]


def _tune_seed(run: RunDir, backbone: Backbone, prepared: Prepared, seed: int, say: Say) -> None:
    recipe, folder = run.recipe, run.seed(seed)
    folder.mkdir(exist_ok=True)
    shots, valid = shots_of(recipe, prepared, seed)
    lora = recipe.lora
    model = attach_lora(
        backbone,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        seed=seed,
    )
    scorer = scorer_of(recipe, backbone, model, prepared.info.domain)
    rows = scorer.encode(reorder(shots, recipe.shots.orders, seed=seed))
    say(
        f"Tuning on {len(rows)} rows ({sum(len(row.positions) for row in rows)} answers, "
        f"{sum(row.dropped for row in rows)} history items dropped), seed {seed}"
    )
    started = time.monotonic()
    with shown("Tuning") as on_progress:
        log = tune(
            model,
            backbone.tokenizer,
            rows,
            scorer.answers,
            TuningOptions(**recipe.tuning.model_dump(), seed=seed),
            folder=folder,
            valid=scorer.encode(valid) if valid else (),
            on_progress=on_progress,
        )
    seconds = time.monotonic() - started
    probe = prepared.splits.train[:_PROBE_ROWS]
    before = scorer(probe)
    save_adapter(model, folder / "adapter.new", _card(backbone, scorer))
    model.unload()
    _prove(recipe, backbone, prepared.info.domain, folder / "adapter.new", probe, before)
    (folder / "adapter.new").replace(folder / "adapter")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    aucs = [entry["eval_auc"] for entry in log if "eval_auc" in entry]
    facts = {
        "seconds": round(seconds, 1),
        "rows": len(rows),
        "validation_rows": len(valid) if valid else 0,
        "dropped_history_items": sum(row.dropped for row in rows),
        "best_validation_auc": max(aucs, default=None),
    }
    run.add(tuning=run.info.get("tuning", {}) | {str(seed): facts})


def _card(backbone: Backbone, scorer: LlmScorer) -> AdapterCard:
    return AdapterCard(
        backbone=backbone.name,
        fingerprint=backbone.fingerprint,
        template=scorer.template.name,
        domain=scorer.domain,
        yes=scorer.template.yes,
        no=scorer.template.no,
        yes_id=scorer.answers.yes,
        no_id=scorer.answers.no,
        max_tokens=scorer.max_tokens,
    )


def _prove(
    recipe: Recipe,
    backbone: Backbone,
    domain: str,
    folder: Path,
    probe: Samples,
    before: np.ndarray,
) -> None:
    """Loads what was saved and compares its scores with those of the tuned model."""
    model = load_adapter(backbone, folder)
    after = scorer_of(recipe, backbone, model, domain)(probe)
    model.unload()
    worst = float(np.abs(after - before).max())
    if not worst <= _RELOAD_TOLERANCE:
        raise ValueError(
            f"the adapter saved in {folder} does not give back the tuned model's scores (off by "
            f"{worst:.3g}); the run keeps its checkpoints: tune again to continue it"
        )
