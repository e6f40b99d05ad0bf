"""One stage of tuning: token rows and an adapter in, a proven adapter out."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tallrec.data.instructions import (
    draw_instructions,
    instruction_files,
    read_instructions,
)
from tallrec.files import sha256, write_atomically
from tallrec.llm.adapter import (
    AdapterCard,
    attach_lora,
    continue_adapter,
    load_adapter,
    save_adapter,
)
from tallrec.llm.backbone import Backbone
from tallrec.llm.lora import weaken
from tallrec.llm.scoring import LlmScorer
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.processes import is_first, wait
from tallrec.progress import shown
from tallrec.prompts import get_template
from tallrec.prompts.answers import TokenRow, resolve_answers
from tallrec.prompts.responses import encode_instructions
from tallrec.recipe import InstructionsStage, Recipe, ShotsStage
from tallrec.steps.data import Say, instructions_source
from tallrec.types import Samples

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_PROBE_ROWS = 8
# Reloaded weights are the same bits, but batches of other shapes round differently in bfloat16.
_RELOAD_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Workbench:
    """What every stage of a run works with.

    Attributes:
        recipe: The run's recipe.
        backbone: Its backbone, without an adapter.
        domain: The noun for an item.
        probe: Samples whose scores prove an adapter.
        say: Shows a line to the user.
    """

    recipe: Recipe
    backbone: Backbone
    domain: str
    probe: Samples
    say: Say

    def scorer(self, model: PreTrainedModel | PeftModel, domain: str | None = None) -> LlmScorer:
        """A loaded model as a scorer, of the run's own domain unless another is given."""
        return scorer_of(self.recipe, self.backbone, model, domain or self.domain)


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
        int8=recipe.evaluation.int8,
    )


def instruction_rows(
    bench: Workbench, stage: InstructionsStage
) -> tuple[list[TokenRow], dict[str, Any]]:
    """The token rows of a stage on instructions, and facts about them for the run's record."""
    source = instructions_source(stage.source)
    records = read_instructions(source)
    if stage.count is not None:
        records = draw_instructions(records, stage.count, seed=stage.seed)
    limit = min(stage.max_tokens, bench.backbone.max_positions)
    rows = encode_instructions(bench.backbone.tokenizer, records, max_tokens=limit)
    hashes = {file.name: sha256(file) for file in instruction_files(source)}
    return rows, {"source": stage.source, "sha256": hashes, "too_long": len(records) - len(rows)}


def tune_stage(
    bench: Workbench,
    stage: InstructionsStage | ShotsStage,
    folder: Path,
    rows: list[TokenRow],
    *,
    seed: int,
    start: Path | None,
    valid: Sequence[TokenRow] = (),
    facts: dict[str, Any] | None = None,
    title: str = "Tuning",
) -> None:
    """Tunes a stage and writes its adapter to `folder / "adapter"`, or continues where it was.

    Args:
        bench: What every stage works with.
        stage: Its settings.
        folder: Checkpoints, log and adapter go here.
        rows: What to learn.
        seed: Seeds a fresh adapter, the order of the rows and dropout.
        start: The adapter to go on from; a fresh one if None.
        valid: Rows that stop tuning.
        facts: What `tuning.json` shall tell of the rows.
        title: What the progress bar is called.

    Raises:
        ValueError: If the adapter to start from does not fit, tuning fails, or what was saved
            does not give back the tuned model's scores.
    """
    folder.mkdir(exist_ok=True)
    model = _begin(bench, start, seed)
    scorer = bench.scorer(model)
    options = stage.model_dump(include={field.name for field in fields(TuningOptions)} - {"seed"})
    started = time.monotonic()
    with shown(title) as on_progress:
        log = tune(
            model,
            rows,
            scorer.answers,
            TuningOptions(**options, seed=seed),
            folder=folder,
            loggers=bench.recipe.loggers,
            valid=valid,
            on_progress=on_progress,
        )
    seconds = time.monotonic() - started
    if isinstance(stage, ShotsStage):
        weaken(model, stage.strength)
    before = scorer(bench.probe)
    if is_first():
        save_adapter(model, folder / "adapter.new", _card(bench.backbone, scorer))
    model.unload()
    wait()
    _prove(bench, folder / "adapter.new", before)
    wait()
    aucs = [entry["eval_auc"] for entry in log if "eval_auc" in entry]
    found = {
        "seconds": round(seconds, 1),
        "rows": len(rows),
        "validation_rows": len(valid),
        "dropped_history_items": sum(row.dropped for row in rows),
        "best_validation_auc": max(aucs, default=None),
    }
    if is_first():
        _finish(folder, found | (facts or {}))
    wait()


def _finish(folder: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2) + "\n"
    write_atomically(folder / "tuning.json", text.encode())
    (folder / "adapter.new").replace(folder / "adapter")  # last: it says that the stage is done
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def probe_of(samples: Samples) -> Samples:
    """A few samples, whose scores before saving and after loading must agree."""
    return samples[:_PROBE_ROWS]


def _begin(bench: Workbench, start: Path | None, seed: int) -> PeftModel:
    if start is not None:
        return continue_adapter(bench.backbone, start, seed=seed)
    lora = bench.recipe.lora
    return attach_lora(
        bench.backbone,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        seed=seed,
    )


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


def _prove(bench: Workbench, folder: Path, before: np.ndarray) -> None:
    """Loads what was saved and compares its scores with those of the tuned model."""
    model = load_adapter(bench.backbone, folder)
    after = bench.scorer(model)(bench.probe)
    model.unload()
    worst = float(np.abs(after - before).max())
    if not worst <= _RELOAD_TOLERANCE:
        raise ValueError(
            f"the adapter saved in {folder} does not give back the tuned model's scores (off by "
            f"{worst:.3g}); the run keeps its checkpoints: tune again to continue it"
        )
