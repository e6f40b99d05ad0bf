"""What loggers show is what `metrics.jsonl` says, interruptions included."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.llm.tune_tiny import STEPS, tune_tiny


def test_tensorboard_shows_each_step_once(tiny_folder, tmp_path):
    def stop_at_ten(done, *_):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_tiny(tiny_folder, tmp_path, loggers=("tensorboard",), on_progress=stop_at_ten)
    tune_tiny(tiny_folder, tmp_path, loggers=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    shown = {event.step: event.value for event in events.Scalars("train/loss")}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert len(events.Scalars("train/loss")) == len(lines) == STEPS
    assert shown == {line["step"]: pytest.approx(line["loss"]) for line in lines}
