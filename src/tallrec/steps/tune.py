"""The tuning step: the stages of a recipe, one after the other, for each of its seeds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import polars as pl

from tallrec.data.prepared import Prepared, read_prepared
from tallrec.data.shots import draw_shots, reorder
from tallrec.llm.backbone import Backbone, choose_device, load_backbone
from tallrec.processes import first_alone, is_first, joined, together, wait
from tallrec.prompts.answers import TokenRow
from tallrec.prompts.responses import ended
from tallrec.recipe import Recipe, ShotsRecipe, ShotsStage
from tallrec.run import RunDir, create_run
from tallrec.steps.check import check_data, check_sources
from tallrec.steps.data import Say, backbone_source, prepare_recipe
from tallrec.steps.stages import Workbench, instruction_rows, probe_of, tune_stage
from tallrec.types import Samples


def tune_recipe(
    recipe: Recipe,
    out: Path,
    *,
    data: Path | None = None,
    backbone: Backbone | None = None,
    say: Say = print,
) -> RunDir:
    """Tunes the stages of a recipe for each of its seeds; continues a run that was cut off.

    Stages on instructions do not depend on shots and are tuned once for all seeds. Of a run that
    is tuned already, nothing is changed.

    Where torchrun or accelerate has started several processes, all of them call this and tune
    together; the first one prepares, writes and speaks.

    Args:
        recipe: What to do.
        out: The run directory.
        data: A prepared folder instead of the recipe's own data.
        backbone: The recipe's backbone, if it is loaded already.
        say: Shows a line to the user.

    Raises:
        ValueError: If something is not right; see the steps that raise it.
    """
    with joined(gpu=choose_device(recipe.backbone.device).type == "cuda"):
        with first_alone():
            check_sources(recipe)
            if data is None:
                check_data(recipe)
            run = create_run(out, recipe)
        with run.locked() if is_first() else nullcontext():
            _tune(run, data, backbone, say)
    return run


def _tune(run: RunDir, data: Path | None, backbone: Backbone | None, say: Say) -> None:
    recipe = run.recipe
    with first_alone():
        folder = data or prepare_recipe(recipe.data, run.path / "data", say=say)
    prepared = read_prepared(folder)
    mixed = [read_prepared(Path(other)) for other in recipe.data.mixed_with]
    known = check_same_data(run, folder, prepared, mixed)
    if known and run.tuned:
        say(f"{run.path} is tuned already: nothing was changed")
        return
    wait()  # the first one writes next what all have just read
    backbone = backbone or load(recipe, say=say, shard=recipe.backbone.shard)
    if is_first():
        _note(run, folder, prepared, mixed, backbone)
    bench = Workbench(
        recipe, backbone, prepared.info.domain, probe_of(prepared.splits.train), say=say
    )
    start = _tune_instructions(run, bench)
    if recipe.shots_stage is not None:
        for seed in recipe.seeds:
            if not (run.seed(seed) / "adapter").is_dir():
                _tune_shots(run, bench, recipe.shots_stage, [prepared, *mixed], seed, start)


def _note(
    run: RunDir, folder: Path, prepared: Prepared, mixed: Sequence[Prepared], backbone: Backbone
) -> None:
    """Writes down what is tuned and on what."""
    run.add(
        data={
            "folder": str(folder.resolve()),
            "sha256": prepared.hashes,
            "mixed_with": [other.hashes for other in mixed],
        },
        backbone={
            "name": backbone.name,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.model.dtype).removeprefix("torch."),
            "device": str(backbone.model.device),
            "chat_template": bool(backbone.tokenizer.chat_template),
        },
        processes=together(),
    )


def check_same_data(
    run: RunDir, folder: Path, prepared: Prepared, mixed: Sequence[Prepared] = ()
) -> bool:
    """Whether a run was begun on data before.

    Raises:
        ValueError: If it was, and on other data than these.
    """
    known = run.info.get("data")
    if not known:
        return False
    if known["sha256"] != prepared.hashes:
        raise ValueError(f"{run.path} was begun on other data than {folder}: give another --out")
    if mixed and known.get("mixed_with") != [other.hashes for other in mixed]:
        others = ", ".join(run.recipe.data.mixed_with)
        raise ValueError(f"{run.path} was begun on other data than {others}: give another --out")
    return True


def load(recipe: Recipe, *, say: Say = print, shard: str = "none") -> Backbone:
    """Loads the backbone of a recipe; whole, unless for tuning in several processes."""
    source = recipe.backbone.source
    say(f"Loading {source}")
    return load_backbone(
        backbone_source(source, say=say),
        name=source,
        dtype=recipe.backbone.dtype,
        device=recipe.backbone.device,
        quantize=recipe.backbone.quantize,
        shard=shard,
        int8=recipe.in_int8,
    )


def shots_of(recipe: Recipe, prepared: Prepared, seed: int) -> tuple[Samples, Samples | None]:
    """The shots of a seed: rows to tune on and rows to stop on, None without validation.

    Where domains are mixed, these are the run's own: what the other folders' equal shares leave.
    """
    own = recipe.shots.count - len(recipe.data.mixed_with) * _share_of_others(recipe)
    return _draw(recipe.shots, own, prepared, seed)


def labelled_of(recipe: Recipe, prepared: Prepared, seed: int) -> Samples:
    """All rows within the budget of a seed's shots: also those that tuning only stops on."""
    tuned_on, valid = shots_of(recipe, prepared, seed)
    if valid is not None and recipe.shots.validation == "shots":
        return replace(tuned_on, rows=pl.concat([tuned_on.rows, valid.rows]))
    return tuned_on


def _share_of_others(recipe: Recipe) -> int:
    return recipe.shots.count // (len(recipe.data.mixed_with) + 1)


def _draw(
    shots: ShotsRecipe, count: int, prepared: Prepared, seed: int
) -> tuple[Samples, Samples | None]:
    drawn = draw_shots(prepared.splits.train, count, seed=seed, stratify=shots.stratify)
    if shots.validation == "paper":
        return drawn, prepared.splits.valid
    if shots.validation == "none":
        return drawn, None
    held_out = max(1, round(count * shots.validation_share))
    if held_out >= count:
        raise ValueError(
            f"{count} shots cannot be split into tuning and validation rows: draw more, "
            f"lower shots.validation_share, or set shots.validation to none"
        )
    return drawn[: count - held_out], drawn[count - held_out :]


def _tune_instructions(run: RunDir, bench: Workbench) -> Path | None:
    """Tunes the stages that all seeds share; returns the adapter that seeds go on from."""
    start = bench.recipe.backbone.adapter
    latest = Path(start) if start is not None else None
    for number, stage in enumerate(bench.recipe.instruction_stages):
        folder = run.stage(number)
        if not (folder / "adapter").is_dir():
            rows, found = instruction_rows(bench, stage)
            bench.say(
                f"Tuning on {len(rows)} instructions of {stage.source} "
                f"({found['too_long']} left out as too long), shared by all seeds"
            )
            tune_stage(
                bench,
                stage,
                folder,
                rows,
                seed=stage.seed,
                start=latest,
                facts=found,
                title="Instructions",
            )
        latest = folder / "adapter"
    return latest


def _tune_shots(
    run: RunDir,
    bench: Workbench,
    stage: ShotsStage,
    folders: Sequence[Prepared],
    seed: int,
    start: Path | None,
) -> None:
    """Tunes one seed on the shots of all folders, the run's own first."""
    recipe = bench.recipe
    drawn = [shots_of(recipe, folders[0], seed)]
    drawn += [_draw(recipe.shots, _share_of_others(recipe), one, seed) for one in folders[1:]]
    orders = orders_of(recipe.shots, sum(len(shots) for shots, _ in drawn))
    rows: list[TokenRow] = []
    valid_rows: list[TokenRow] = []
    for prepared, (shots, valid) in zip(folders, drawn, strict=True):
        scorer = bench.scorer(bench.backbone.model, prepared.info.domain)
        rows += scorer.encode(reorder(shots, orders, seed=seed))
        valid_rows += scorer.encode(valid) if valid else []
    bench.say(
        f"Tuning on {len(rows)} rows ({sum(len(row.positions) for row in rows)} answers, "
        f"{sum(row.dropped for row in rows)} history items dropped), seed {seed}"
    )
    if stage.loss != "answers":
        rows = ended(rows, bench.backbone.tokenizer.eos_token_id)
    tune_stage(bench, stage, run.seed(seed), rows, seed=seed, start=start, valid=valid_rows)


def orders_of(shots: ShotsRecipe, count: int) -> int:
    """In how many orders of its history and target each of `count` shots is tuned on."""
    if shots.most_rows is None:
        return shots.orders
    return min(shots.orders, max(1, shots.most_rows // count))
