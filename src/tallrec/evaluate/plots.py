"""Pictures of an evaluation. Nothing here touches pyplot, so nothing is global or needs a display.

Colours are Okabe & Ito's, told apart by colour-blind readers. Other recommenders are thin lines,
and what only counts is drawn in greys and dashes: models stand out in black and white too.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from sklearn.metrics import roc_curve

from tallrec.evaluate.metrics import CALIBRATION_BINS, METRICS, calibration_bin, sigmoid
from tallrec.evaluate.schema import COUNTING, MODEL, Evaluation, Result, SystemResult
from tallrec.types import BoolArray, FloatArray

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_OTHER_COLOURS = ("#332288", "#44AA99", "#999933", "#882255", "#88CCEE", "#AA4499")  # Tol's muted
_COUNTING_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#222222", "ls": (0, (1, 1))},
    {"color": "#8a8a8a", "ls": (0, (4, 1.5))},
    {"color": "#555555", "ls": (0, (6, 1.5, 1, 1.5))},
)
_CHANCE_STYLE: dict[str, Any] = {"color": "#bbbbbb", "lw": 1.0, "zorder": 1}
_NOTE_STYLE: dict[str, Any] = {"color": "#777777", "fontsize": "small"}

_SHOTS_PANELS = ("auc", "gauc")


def figures(evaluation: Evaluation) -> dict[str, Figure]:
    """The pictures of one evaluation by caption, for `write_report`."""
    return {"ROC": roc_figure(evaluation), "Calibration": calibration_figure(evaluation)}


def roc_figure(evaluation: Evaluation) -> Figure:
    """ROC curves over all samples: the mean over seeds, in a band that holds every seed."""
    figure = Figure(figsize=(5.6, 5.8), layout="constrained")
    axes = figure.add_subplot()
    _dress(axes, "ROC, all users together")
    axes.axline((0, 0), (1, 1), **_CHANCE_STYLE)
    axes.text(0.3, 0.27, "chance", rotation=45, **_NOTE_STYLE)
    if evaluation.labels.all() or not evaluation.labels.any():
        axes.text(0.5, 0.5, "n/a: the test holds one answer only", ha="center")
    else:
        _draw_rocs(axes, evaluation)
        several = any(len(system.scores) > 1 for system in evaluation.systems)
        title = "AUC (bands span the seeds)" if several else "AUC"
        axes.legend(loc="lower right", frameon=False, title=title, alignment="left")
    axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
    axes.set(xlabel="dislikes above the threshold", ylabel="likes above the threshold")
    _in_percent(axes.xaxis, axes.yaxis)
    return figure


def calibration_figure(evaluation: Evaluation) -> Figure:
    """Share of likes by predicted probability, above how often that was predicted; all seeds."""
    figure = Figure(figsize=(5.6, 6.8), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _dress(axes, "Calibration: does a predicted probability come true?")
    _dress(below)
    axes.axline((0, 0), (1, 1), **_CHANCE_STYLE)
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    styles = _styles(system.kind for system in evaluation.systems)
    for system, style in zip(evaluation.systems, styles, strict=True):
        probability, liked, count = _reliability(system.scores, evaluation.labels)
        filled = count > 0
        axes.plot(
            probability[filled] / count[filled],
            liked[filled] / count[filled],
            **style,
            marker="o",
            markersize=4.5,
            label=system.name,
        )
        below.stairs(count / max(count.sum(), 1), edges, **style)
    axes.legend(loc="upper left", frameon=False)
    axes.set(xlim=(0, 1), ylim=(0, 1.005), ylabel="share that was liked")
    below.set(xlabel="predicted probability of a like", ylabel="predictions")
    _in_percent(below.xaxis, axes.yaxis, below.yaxis)
    return figure


def shots_figure(
    results: Mapping[str, Result],
    reference: Mapping[str, Mapping[int, float]] | None = None,
) -> Figure:
    """AUC and GAUC by the number of shots, with 95 % intervals.

    Systems of one name, in however many runs, make one line.

    Args:
        results: Results by run; `metadata["shots"]` of each places it.
        reference: Published AUC (0 to 1) by shots, by the name of their line.

    Raises:
        ValueError: If a run does not say its shots.
    """
    lines = _by_shots(results)
    published = reference or {}
    shots = sorted(
        {k for points in lines.values() for k, _ in points}
        | {k for points in published.values() for k in points}
    )
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, _SHOTS_PANELS, strict=True):
        _dress(axes, METRICS[metric].title)
        axes.axhline(0.5, **_CHANCE_STYLE)
        _draw_lines(axes, lines, metric)
        # Linear only near 0 (untuned), which a logarithm cannot show.
        axes.set_xscale("symlog", base=2, linthresh=next(filter(None, shots), 2) / 2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("shots")
    _draw_published(panels[0], published)
    at_right_edge = panels[0].get_yaxis_transform()
    panels[0].text(1, 0.502, "chance", transform=at_right_edge, ha="right", **_NOTE_STYLE)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_rocs(axes: Axes, evaluation: Evaluation) -> None:
    styles = _styles(system.kind for system in evaluation.systems)
    grid = np.linspace(0, 1, 501)
    for system, style in zip(evaluation.systems, styles, strict=True):
        curves = np.array([_roc(row, evaluation.labels, grid) for row in system.scores])
        auc = np.mean(
            [METRICS["auc"](evaluation.labels, row, evaluation.users) for row in system.scores]
        )
        axes.plot(grid, curves.mean(axis=0), **style, label=f"{auc:.3f}  {system.name}")
        if len(curves) > 1:
            axes.fill_between(
                grid,
                curves.min(axis=0),
                curves.max(axis=0),
                color=style["color"],
                alpha=0.15,
                linewidth=0,
            )


def _roc(scores: FloatArray, labels: BoolArray, grid: FloatArray) -> FloatArray:
    """Share of likes found at each share of dislikes taken for likes, shape of the grid."""
    scored = ~np.isnan(scores)
    if labels[scored].all() or not labels[scored].any():
        return np.full_like(grid, np.nan)
    dislikes, likes, _ = roc_curve(labels[scored], scores[scored])
    curve: FloatArray = np.interp(grid, dislikes, likes)
    return curve


def _reliability(
    scores: FloatArray, labels: BoolArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Sum of probabilities, likes and samples in each bin of the calibration error."""
    scored = ~np.isnan(scores)
    probability = sigmoid(scores[scored])
    liked = np.broadcast_to(labels, scores.shape)[scored]
    bins = calibration_bin(probability)
    total, likes, count = (
        np.bincount(bins, weights, minlength=CALIBRATION_BINS).astype(np.float64)
        for weights in (probability, liked, np.ones(len(bins)))
    )
    return total, likes, count


def _by_shots(results: Mapping[str, Result]) -> dict[str, list[tuple[int, SystemResult]]]:
    """Every system's (shots, result), fewest shots first, by its name."""
    lines: dict[str, list[tuple[int, SystemResult]]] = {}
    for run, result in results.items():
        shots = result["metadata"].get("shots")
        if not isinstance(shots, int):
            raise ValueError(f"run {run!r} does not say its number of shots, so it has no place")
        for system in result["systems"]:
            lines.setdefault(system["name"], []).append((shots, system))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def _draw_lines(
    axes: Axes, lines: Mapping[str, list[tuple[int, SystemResult]]], metric: str
) -> None:
    styles = _styles(points[0][1]["kind"] for points in lines.values())
    for i, ((name, points), style) in enumerate(zip(lines.items(), styles, strict=True)):
        defined = [(k, s["metrics"][metric]) for k, s in points if s["metrics"][metric]["mean"]]
        # Side by side, so that intervals at the same shots do not hide each other.
        x = [k * 2 ** (0.07 * (i - (len(lines) - 1) / 2)) for k, _ in defined]
        mean, low, high = (
            np.array([m[key] for _, m in defined], dtype=np.float64)
            for key in ("mean", "low", "high")
        )
        bars = axes.errorbar(
            x, mean, yerr=(mean - low, high - mean), marker="o", markersize=5, label=name, **style
        )
        for bar in bars.lines[2]:
            bar.set(linewidth=1.2, linestyle="-", alpha=0.6)


def _draw_published(axes: Axes, published: Mapping[str, Mapping[int, float]]) -> None:
    for colour, (name, points) in zip(cycle(reversed(_COLOURS)), published.items(), strict=False):
        shots = sorted(points)
        auc = [points[k] for k in shots]
        axes.plot(shots, auc, ls=":", marker="D", mfc="white", color=colour, label=name)


def _styles(kinds: Iterable[str]) -> Iterator[dict[str, Any]]:
    """A line style for each system; models above what else there is, and that above counting."""
    colours, others, counting = cycle(_COLOURS), cycle(_OTHER_COLOURS), cycle(_COUNTING_STYLES)
    for kind in kinds:
        if kind == COUNTING:
            yield {**next(counting), "lw": 1.5, "zorder": 2}
        elif kind == MODEL:
            yield {"color": next(colours), "ls": "-", "lw": 2.2, "zorder": 4}
        else:
            yield {"color": next(others), "ls": "-", "lw": 1.1, "zorder": 3}


def _dress(axes: Axes, title: str = "") -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize="medium")
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _in_percent(*axis: Any) -> None:
    for one in axis:
        one.set_major_formatter(PercentFormatter(1, decimals=0))
