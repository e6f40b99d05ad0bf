"""Measures the Gaussian process and its parts beside counting, on any prepared folder.

What the recipes and `tallrec.gaussian` fix was chosen with this script on validation parts:

    tallrec prepare movielens-100k --split users --out data/ml-100k
    python benchmarks/gaussian.py data/ml-100k --shots 64

Each line leaves something out, or shows less of a history. With `--part test` it tells how far the
process is above the best count, with 95 % intervals over users; look at that once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from tallrec.baselines import COUNTING_BASELINES
from tallrec.data.prepared import read_prepared
from tallrec.data.samples import with_histories
from tallrec.data.shots import draw_shots
from tallrec.evaluate import COUNTING, METRICS, MODEL, Evaluation, System, summarize
from tallrec.gaussian import GaussianProcess, Titles, kernel
from tallrec.llm.title_states import title_states
from tallrec.recipe_files import load_recipe
from tallrec.steps.tune import load
from tallrec.types import FloatArray, Samples, Scorer

WHOLE = "the process"
LEFT_OUT: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    "without titles": ("title", "user, title"),
    "without years": ("year", "decade", "user, year"),
    "without popularity": ("popularity",),
    "without 'lately'": ("user, lately",),
    "user and item alone": tuple(
        name
        for name in (*kernel.ITEM_PARTS, *kernel.USER_PARTS)
        if name not in ("everything", "item", "user")
    ),
}
HISTORIES = (10, 20, 50, 200)


def without(left_out: tuple[str, ...], fit: Callable[[], GaussianProcess]) -> GaussianProcess:
    """Fits a process whose kernel lacks some parts."""
    items, users = dict(kernel.ITEM_PARTS), dict(kernel.USER_PARTS)
    try:
        for name in left_out:
            kernel.ITEM_PARTS.pop(name, None)
            kernel.USER_PARTS.pop(name, None)
        return fit()
    finally:
        kernel.ITEM_PARTS.update(items)
        kernel.USER_PARTS.update(users)


def some_of(samples: Samples, users: int, rows: int) -> Samples:
    """As many rows, evenly spread, of each of as many random users."""
    names = np.unique(samples.users)
    chosen = np.random.default_rng(0).permutation(names)[:users]
    kept = []
    for user in chosen:
        own = np.flatnonzero(samples.users == user)
        kept.append(own[np.unique(np.linspace(0, len(own) - 1, min(rows, len(own))).astype(int))])
    return samples[np.sort(np.concatenate(kept))]


def scores_of(
    shots: Samples, asked: Samples, titles: Titles, ablate: bool
) -> Iterator[tuple[str, FloatArray]]:
    """Each variant and what it scores."""
    for name, fit in COUNTING_BASELINES.items():
        yield name, fit(shots)(asked)
    for name, left_out in LEFT_OUT.items() if ablate else [(WHOLE, ())]:
        process: Scorer = without(left_out, lambda: GaussianProcess.fit(shots, titles))
        if name == WHOLE:
            for longest in HISTORIES[: -1 if ablate else 0]:
                yield f"{name}, {longest} events", process(with_histories(asked, longest))
        yield name, process(with_histories(asked, HISTORIES[-1]))


def show(scores: Mapping[str, list[FloatArray]], asked: Samples) -> None:
    """Prints means over seeds, their spread, and how far all are above counting."""
    print(f"{'':32}{'AUC':>16}{'GAUC':>16}{'log-loss':>10}{'ECE':>8}")
    for name, by_seed in scores.items():
        values = {
            metric: [METRICS[metric](asked.labels, one, asked.users) for one in by_seed]
            for metric in ("auc", "gauc", "log_loss", "ece")
        }
        cells = [f"{np.mean(values[m]):9.4f} {np.std(values[m]):.4f}" for m in ("auc", "gauc")]
        cells += [f"{np.mean(values['log_loss']):10.4f}{np.mean(values['ece']):8.4f}"]
        print(f"{name:32}", *cells, sep="", flush=True)
    systems = [
        System(name, COUNTING if name in COUNTING_BASELINES else MODEL, np.array(by_seed))
        for name, by_seed in scores.items()
    ]
    result = summarize(Evaluation(asked.labels, asked.users, tuple(systems)))
    for d in result["differences"]:
        if d["system"] == WHOLE:
            interval = f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
            print(f"{d['metric']}: {interval} above {d['baseline']}, {d['verdict']}")


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--shots", type=int, nargs="+", default=[64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=["valid", "test"], default="valid")
    parser.add_argument("--users", type=int, default=100, help="at most as many")
    parser.add_argument("--rows", type=int, default=60, help="of each user, at most")
    parser.add_argument("--backbone", default="smollm2-135m")
    arguments = parser.parse_args()
    prepared = read_prepared(arguments.data)
    backbone = load(load_recipe("demo", (f"backbone.source={arguments.backbone}",)))
    catalog, domain = prepared.splits.train.catalog, prepared.info.domain
    titles = Titles.of(
        catalog,
        lambda asked: title_states(backbone.model, backbone.tokenizer, asked, domain=domain),
        components=64,
    )
    part = prepared.splits.parts()[arguments.part]
    asked = some_of(part, arguments.users, arguments.rows)
    for count in arguments.shots:
        print(f"\n{arguments.data}, {count} shots, {len(asked):,} rows of {arguments.part}")
        scores: dict[str, list[FloatArray]] = {}
        for seed in range(arguments.seeds):
            shots = draw_shots(prepared.splits.train, count, seed=seed, stratify="user")
            for name, values in scores_of(shots, asked, titles, arguments.part == "valid"):
                scores.setdefault(name, []).append(values)
        show(scores, asked)


if __name__ == "__main__":
    main()
