from dataclasses import replace

import numpy as np
import pytest

from tallrec.evaluate import summarize
from tallrec.evaluate.plots import calibration_figure, roc_figure, shots_figure
from tests.evaluate.cases import make_evaluation


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


def curves(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_roc_draws_every_system_with_its_auc(evaluation):
    result = summarize(evaluation, resamples=20)
    axes = roc_figure(evaluation).axes[0]
    lines = curves(axes)
    for system in result["systems"]:
        auc = system["metrics"]["auc"]["mean"]
        x, y = lines[f"{auc:.3f}  {system['name']}"].get_data()
        assert np.trapezoid(y, x) == pytest.approx(auc, abs=2e-3)
    assert len(axes.collections) == 2  # bands: the two systems with several seeds


def test_calibration_bins_hold_every_prediction(evaluation):
    scores = evaluation.systems[0].scores.copy()
    scores[:, :400] = np.nan
    systems = (replace(evaluation.systems[0], scores=scores),)
    curve, histogram = calibration_figure(replace(evaluation, systems=systems)).axes
    x, y = curves(curve)["tuned"].get_data()
    assert ((x > 0) & (x < 1) & (y >= 0) & (y <= 1)).all()
    assert (np.diff(x) > 0).all()
    assert histogram.patches[0].get_data().values.sum() == pytest.approx(1)


def test_calibration_of_the_truth_is_the_diagonal():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=20_000)
    evaluation = make_evaluation(rows=20_000)
    systems = (replace(evaluation.systems[0], scores=scores[None]),)
    labels = rng.random(20_000) < 1 / (1 + np.exp(-scores))
    figure = calibration_figure(replace(evaluation, labels=labels, systems=systems))
    x, y = curves(figure.axes[0])["tuned"].get_data()
    np.testing.assert_allclose(x, y, atol=0.06)


def test_one_answer_only_still_draws(evaluation):
    certain = replace(evaluation, labels=np.ones(800, dtype=bool))
    assert any("n/a" in text.get_text() for text in roc_figure(certain).axes[0].texts)
    _, y = curves(calibration_figure(certain).axes[0])["tuned"].get_data()
    assert (y == 1).all()


def test_shots_are_placed_by_metadata():
    results = {
        f"run {k}": summarize(make_evaluation(metadata={"shots": k}, skill=k / 64), resamples=20)
        for k in (256, 0, 16)
    }
    figure = shots_figure(results, reference={"published": {16: 0.67, 64: 0.68}})
    auc, gauc = figure.axes
    assert [int(tick) for tick in auc.get_xticks()] == [0, 16, 64, 256]
    for axes, metric in ((auc, "auc"), (gauc, "gauc")):
        container = next(c for c in axes.containers if c.get_label() == "tuned")
        expected = [
            results[f"run {k}"]["systems"][0]["metrics"][metric]["mean"] for k in (0, 16, 256)
        ]
        np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
    assert "published" in curves(auc)
    assert "published" not in curves(gauc)


def test_a_run_without_shots_has_no_place(evaluation):
    result = summarize(replace(evaluation, metadata={}), resamples=20)
    with pytest.raises(ValueError, match="'mine' does not say its number of shots"):
        shots_figure({"mine": result})


def test_nothing_global_is_touched(evaluation):
    from matplotlib import _pylab_helpers

    roc_figure(evaluation)
    assert not _pylab_helpers.Gcf.figs
