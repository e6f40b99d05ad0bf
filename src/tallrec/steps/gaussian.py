"""The Gaussian process of a run: fitted on each seed's shots, kept beside its adapter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path

import numpy as np
import polars as pl

from tallrec.data.prepared import Prepared
from tallrec.data.samples import with_histories
from tallrec.evaluate import MODEL, System
from tallrec.gaussian import CrowdProcess, GaussianProcess, Titles, load_process, save_process
from tallrec.llm.backbone import Backbone
from tallrec.llm.title_states import title_states
from tallrec.progress import shown, silent
from tallrec.run import RunDir
from tallrec.steps.baselines import in_words, known_before
from tallrec.steps.data import Say
from tallrec.steps.score import kept
from tallrec.steps.tune import labelled_of, load
from tallrec.types import FloatArray, Samples

_MANY = 1000  # titles, which take a while to read


def score_process(
    run: RunDir,
    own: Prepared,
    samples: Samples,
    out: Path,
    *,
    domain: str,
    backbone: Backbone | None = None,
    say: Say = print,
) -> list[System]:
    """The scores of a run's Gaussian processes; none where its recipe has no such thing.

    Args:
        run: A tuned run.
        own: What it was tuned on.
        samples: What to score.
        out: Scores are kept in `out / "seed-N"`, as the model's are.
        domain: The noun for an item of the samples.
        backbone: The run's backbone, if it is loaded already.
        say: Shows a line to the user.
    """
    wanted = run.recipe.gaussian_process
    if wanted is None:
        return []
    asked = with_histories(samples, wanted.history)
    processes = processes_of(run, own, domain=domain, backbone=backbone, say=say)

    def score(seed: int) -> FloatArray:
        return processes(seed)(asked)

    files = {seed: out / f"seed-{seed}" / "gaussian-process.parquet" for seed in run.recipe.seeds}
    scores = [kept(file, samples, partial(score, seed)) for seed, file in files.items()]
    systems = [System(process_name(run), MODEL, np.array(scores))]

    def score_of_all() -> FloatArray:
        known = known_before(own, samples)
        say(f"Fitting a Gaussian process on all data: {in_words(known)}")
        return CrowdProcess.fit(known, processes(run.recipe.seeds[0]).titles)(asked)

    if wanted.full_data:
        of_all = kept(out / "gaussian-process.parquet", samples, score_of_all)
        systems.append(System(f"{process_name(run)}, full data", "full data", of_all[None]))
    return systems


def process_name(run: RunDir) -> str:
    """What its row of a report is called."""
    return f"{run.recipe.backbone.source}, Gaussian process"


def process_file(run: RunDir, seed: int) -> Path:
    """Where the process of a seed is kept."""
    return run.seed(seed) / "gaussian-process.npz"


def processes_of(
    run: RunDir,
    own: Prepared,
    *,
    domain: str,
    backbone: Backbone | None = None,
    say: Say = print,
) -> Callable[[int], GaussianProcess]:
    """The process of each seed: read from the run, or fitted and then kept there.

    Titles are described by the backbone as it is: the same vectors serve all seeds. It is loaded
    when a title has to be described.

    Args:
        run: A tuned run whose recipe has a Gaussian process.
        own: What it was tuned on.
        domain: The noun for an item that will be asked about.
        backbone: The run's backbone, if it is loaded already.
        say: Shows a line to the user.
    """
    catalog = own.splits.train.catalog

    @cache
    def loaded() -> Backbone:
        return backbone or load(run.recipe, say=say)

    def describe(titles: pl.DataFrame, *, domain: str) -> FloatArray:
        # A service, whose log is not for bars, asks about a few titles of nobody's catalogue.
        telling = nullcontext(silent) if titles.height < _MANY else shown("Reading titles")
        with telling as on_progress:
            return title_states(
                loaded().model,
                loaded().tokenizer,
                titles,
                domain=domain,
                batch_tokens=run.recipe.evaluation.batch_tokens,
                int8=run.recipe.evaluation.int8,
                on_progress=on_progress,
            )

    @cache
    def known_titles() -> Titles:
        assert run.recipe.gaussian_process is not None
        components = run.recipe.gaussian_process.components
        return Titles.of(catalog, partial(describe, domain=own.info.domain), components)

    def process(seed: int) -> GaussianProcess:
        path = process_file(run, seed)
        if not path.exists():
            shots = labelled_of(run.recipe, own, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_process(GaussianProcess.fit(shots, known_titles()), path)
        return load_process(path, catalog, partial(describe, domain=domain))

    return process
