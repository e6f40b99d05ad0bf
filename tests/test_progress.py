"""A bar on a terminal, plain lines in a log."""

import io

import pytest
from rich.console import Console

from tallrec import progress
from tallrec.progress import shown, silent


def draw(calls, **options):
    """What is drawn for calls of `on_progress`."""
    file = io.StringIO()
    with shown("Scoring", Console(file=file, width=100, **options)) as on_progress:
        for call in calls:
            on_progress(*call)
    return file.getvalue()


def test_a_log_has_one_line_at_the_end_of_quick_work():
    text = draw([(i, 50, "loss 0.5") for i in range(51)])
    assert text == "Scoring: 50/50 after 0 s loss 0.5\n"


def test_a_log_has_a_line_now_and_then_in_long_work(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    text = draw([(1, 3, ""), (2, 3, "[red]"), (3, 3, "")])
    lines = text.splitlines()
    assert [line.split(" after ")[0] for line in lines] == [
        "Scoring: 1/3",
        "Scoring: 2/3",
        "Scoring: 3/3",
    ]
    assert lines[1].endswith("[red]")


def test_a_log_line_is_not_broken():
    text = draw([(1, 1, "x" * 200)])
    assert text.count("\n") == 1


def test_a_terminal_has_a_bar():
    text = draw([(0, 4, ""), (2, 4, "loss 0.5"), (4, 4, "loss 0.4")], force_terminal=True)
    assert "Scoring" in text
    assert "4/4" in text
    assert "loss 0.4" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_an_error_goes_through_and_work_without_steps_is_fine(terminal):
    draw([], force_terminal=terminal)
    with (
        pytest.raises(KeyboardInterrupt),
        shown("Scoring", Console(file=io.StringIO(), force_terminal=terminal)),
    ):
        raise KeyboardInterrupt


def test_silent_takes_what_a_bar_takes():
    assert silent(1, 2) is silent(1, 2, "note") is None


def test_the_default_is_standard_error(capsys):
    with shown("Scoring") as on_progress:
        on_progress(1, 1, "")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "Scoring: 1/1 after 0 s\n"
