"""What tests of every layer share: one thread a process, and a tiny real language model."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported, here and in subprocesses: pytest-xdist already uses every core.
os.environ["OMP_NUM_THREADS"] = "1"

# A loop may be compiled in any test, and speed is measured by benchmarks.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A model folder: config.json, model.safetensors and tokenizer.json."""
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def backbone(tiny_folder):
    """The tiny model, freshly loaded: a test may change it."""
    from tallrec.llm.backbone import load_backbone

    return load_backbone(tiny_folder, name="tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory, tiny_folder):
    """A tuned run of two seeds on planted taste, histories in blocks of 4; leave it as it is."""
    from tallrec.data.prepared import PreparedInfo, write_prepared
    from tallrec.recipe_files import load_recipe
    from tallrec.steps.tune import tune_recipe
    from tests.planted import planted_splits

    folder = tmp_path_factory.mktemp("planted")
    info = PreparedInfo("planted", "movie", "users", 8, 8, 3.0, 0)
    write_prepared(folder / "data", planted_splits(users=24), info)
    settings = ("backbone.dtype=float32", "shots.count=12", "seeds=[0, 1]", "stages.0.epochs=2")
    settings += (f"backbone.source={tiny_folder}", "evaluation.block=4")
    settings += ("stages.0.int8=false", "evaluation.int8=false")  # for what is compared to 1e-4
    recipe = load_recipe("demo", settings).model_copy(update={"gaussian_process": None})
    return tune_recipe(recipe, folder / "run", data=folder / "data", say=lambda _line: None)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M converted from its GGUF file, in bfloat16; leave it as it is."""
    from tallrec.assets import fetch
    from tallrec.llm import backbone

    folder = tmp_path_factory.mktemp("converted") / "model"
    with pytest.MonkeyPatch.context() as patch:  # not what an earlier process has converted
        patch.setattr(backbone, "converted_folder", lambda *_: folder)
        return backbone.load_backbone(
            fetch("smollm2-135m"), name="smollm2-135m", dtype="bfloat16", device="cpu"
        )
