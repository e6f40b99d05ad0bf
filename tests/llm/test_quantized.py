"""QLoRA on the CPU: frozen weights in 8 or 4 bits, an adapter tuned on them, saved and loaded."""

import numpy as np
import pytest

from tallrec.llm.adapter import attach_lora, load_adapter, save_adapter
from tallrec.llm.backbone import load_backbone
from tallrec.llm.tuning import TuningOptions, tune
from tests.llm.helpers import card_of, scorer_for
from tests.llm.tune_tiny import shots

pytest.importorskip("bitsandbytes", reason="quantized weights need: pip install 'tallrec[gpu]'")


@pytest.mark.filterwarnings("ignore")  # of types that bitsandbytes casts between
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_quantized_backbone_is_tuned_and_its_adapter_loads(tiny_folder, tmp_path, quantize):
    backbone = load_backbone(
        tiny_folder, name="tiny", dtype="float32", device="cpu", quantize=quantize
    )
    kinds = {type(module).__name__ for module in backbone.model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantize] in kinds
    model = attach_lora(backbone, targets=("all-linear",))
    scorer = scorer_for(backbone, model)
    options = TuningOptions(
        epochs=2, learning_rate=5e-3, batch_size=4, micro_batch=2, gradient_checkpointing=True
    )
    log = tune(model, scorer.encode(shots()), scorer.answers, options, folder=tmp_path)
    assert log[-1]["loss"] < log[0]["loss"] / 1.3
    before = scorer(shots())
    save_adapter(model, tmp_path / "adapter", card_of(backbone))
    model.unload()
    after = scorer_for(backbone, load_adapter(backbone, tmp_path / "adapter"))(shots())
    np.testing.assert_allclose(after, before, atol=1e-3)
