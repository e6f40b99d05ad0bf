"""The formula of capacity against the simulation of it, and against planted costs."""

import pytest

from tallrec.scale.capacity import Speed, Work, fit_speed, seconds_of, simulate

SPEED = Speed(start=20, token=1e-4, row=2e-4)


def test_the_costs_of_tokens_and_rows_are_told_apart():
    works = [Work(users, n, 150, 12) for users, n in ((10, 5), (20, 50), (3, 200), (40, 10))]
    fitted = fit_speed(
        [work.tokens for work in works],
        [work.rows for work in works],
        [SPEED.busy(work) for work in works],
        start=20,
    )
    assert fitted.token == pytest.approx(SPEED.token)
    assert fitted.row == pytest.approx(SPEED.row)


def test_many_buckets_take_what_the_formula_says():
    work = Work(100_000, 200, 150, 12)
    expected = seconds_of(work, SPEED, 16)
    assert simulate(work, SPEED, 16, buckets=4096) == pytest.approx(expected, rel=0.02)
    assert simulate(work, SPEED, 16, buckets=8) == pytest.approx(  # half of the workers idle
        SPEED.start + SPEED.busy(work) / 8, rel=0.05
    )


def test_workers_that_die_cost_the_bucket_they_die_in():
    work = Work(100_000, 200, 150, 12)
    bucket = SPEED.busy(work) / 1024
    life = 100 * bucket
    lost = simulate(work, SPEED, 16, buckets=1024, mean_life=life) - seconds_of(work, SPEED, 16)
    deaths = SPEED.busy(work) / life / 16  # of each worker
    assert lost == pytest.approx(deaths * (bucket / 2 + SPEED.start), rel=0.5)
    assert lost > 0
