"""Two tiny finished runs, and servers for them on free ports."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn

from tallrec.data.prepared import write_prepared
from tallrec.serve.app import create_app
from tallrec.serve.feedback import FeedbackStore
from tallrec.serve.model import ServedModel
from tallrec.serve.server import bound
from tallrec.serve.service import Service, Settings
from tallrec.steps.evaluate import evaluate_run
from tallrec.steps.tune import tune_recipe
from tests.planted import planted_splits
from tests.serve.client import Client
from tests.test_pipeline import INFO, silent, tiny_recipe


@pytest.fixture(scope="session")
def runs(tmp_path_factory, tiny_folder):
    """A folder with the evaluated run `first`, and `second` of another seed."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "model").symlink_to(tiny_folder)
    write_prepared(folder / "data", planted_splits(), INFO)
    for name, seed in (("first", 0), ("second", 1)):
        settings = (
            f"seeds=[{seed}]",
            "evaluation.zero_shot=false",
            "shots.count=8",
            "shots.orders=1",
        )
        recipe = tiny_recipe(folder, *settings)
        tune_recipe(recipe, folder / name, data=folder / "data", say=silent)
    evaluate_run(folder / "first", say=silent)
    return folder


@dataclass(frozen=True)
class Gated(ServedModel):
    """A model that scores when its gate is open; `held` is set while one waits before it."""

    gate: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)

    def score(self, rows):
        self.held.set()
        assert self.gate.wait(60)
        return super().score(rows)


@pytest.fixture(scope="session")
def model(runs):
    """The run `first`; two services that use it must not score at the same time."""
    return ServedModel.load(runs / "first")


@pytest.fixture
def gated(model):
    return Gated(model.path, model.recommender, model.card)


@pytest.fixture
def serving(tmp_path):
    """Starts servers: `with serving(model, settings) as client`."""

    @contextmanager
    def start(model, settings=None, port=0):
        settings = settings or Settings()
        store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.db'}")
        service = Service(model, store, settings)
        listener = bound("127.0.0.1", port)
        config = uvicorn.Config(create_app(service), log_config=None, access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Client(listener.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()

    return start
