"""Tuning learns, repeats itself, stops where it should and says why when it cannot go on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tallrec.evaluate import METRICS
from tallrec.llm import tuning
from tallrec.llm.adapter import attach_lora
from tallrec.llm.checkpoints import last_checkpoint
from tallrec.llm.loss import LOSSES, collate
from tallrec.llm.scoring import score_rows
from tallrec.llm.trainer import TuningError, target_auc
from tallrec.llm.tuning import TuningOptions, tune
from tallrec.prompts.answers import Answers, TokenRow
from tallrec.prompts.responses import encode_instructions
from tallrec.types import Instruction
from tests.llm.helpers import generous_splits, scorer_for
from tests.llm.tune_tiny import STEPS, shots, tune_tiny, unlike

GOLDEN = Path(__file__).with_name("golden_losses.json")


def weights(model):
    return get_peft_model_state_dict(model, save_embedding_layers=False)


def same(ours, theirs):
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def losses(log):
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.parametrize(("template", "n"), [("timeline", 360), ("paper", 160)])
def test_planted_taste_is_learnt_from_other_users(backbone, tmp_path, template, n):
    splits = generous_splits()
    model = attach_lora(backbone, targets=("all-linear",))
    scorer = scorer_for(backbone, model, template)
    options = TuningOptions(epochs=2, learning_rate=5e-3, batch_size=16, micro_batch=16)
    rows = scorer.encode(splits.train[np.random.default_rng(0).permutation(360)[:n]])
    tune(model, rows, scorer.answers, options, folder=tmp_path)
    test = splits.test
    assert METRICS["auc"](test.labels, scorer(test), test.users) > 0.9


def test_the_loss_series_is_the_golden_one(tiny_folder, tmp_path):
    """What refactoring must not change. To renew it: write `losses(log)` to the golden file.

    Without dropout, whose numbers are others on machines without the compiled loops.
    """
    _, _, log = tune_tiny(tiny_folder, tmp_path, dropout=0.0)
    golden = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(losses(log), golden, atol=1e-4)
    assert golden[-1] < golden[0] / 1.5


def test_a_seed_decides_everything(tiny_folder, tmp_path):
    runs = [
        weights(tune_tiny(tiny_folder, tmp_path / str(i), epochs=1, seed=seed)[1])
        for i, seed in enumerate((0, 0, 1))
    ]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])  # another order, other dropout


def test_dropout_is_at_work(tiny_folder, tmp_path):
    with_dropout = tune_tiny(tiny_folder, tmp_path / "a", epochs=1)[2]
    without = tune_tiny(tiny_folder, tmp_path / "b", epochs=1, dropout=0.0)[2]
    assert losses(with_dropout) != losses(without)


@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_add_up_to_the_batch(tiny_folder, tmp_path, loss):
    """Rows of different lengths, and a last batch that is smaller than the others."""
    samples = [replace(s, history=s.history[i % 8 :]) for i, s in enumerate(shots())]
    logs = [
        tune_tiny(
            tiny_folder,
            tmp_path / str(micro),
            samples=samples,
            dropout=0.0,
            batch_size=8,
            micro_batch=micro,
            loss=loss,
        )[2]
        for micro in (8, 4, 1)
    ]
    assert len(losses(logs[0])) == 9
    for log in logs[1:]:
        np.testing.assert_allclose(losses(log), losses(logs[0]), atol=1e-4)


def test_the_answer_loss_is_the_cross_entropy_of_yes_and_no(backbone):
    scorer = scorer_for(backbone)
    rows = scorer.encode(shots()[:3])
    batch = collate(rows, "answers", by_tree=False)
    expected = []
    with torch.no_grad():
        for row in rows:
            logits = backbone.model(input_ids=torch.tensor([row.ids])).logits[0]
            for position, like in zip(row.positions, row.likes, strict=True):
                assert row.ids[position + 1] == (scorer.answers.yes if like else scorer.answers.no)
                pair = logits[position, [scorer.answers.no, scorer.answers.yes]]
                expected.append(float(-pair.log_softmax(0)[int(like)]))
        loss = LOSSES["answers"](backbone.model, batch, scorer.answers)
    assert len(expected) == len(batch["targets_n"]) == 3 * 9
    assert float(loss) == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_loss_on_all_tokens_is_the_models_own(backbone, tiny_folder, tmp_path):
    samples = [replace(s, history=s.history[i:]) for i, s in enumerate(shots()[:4])]
    scorer = scorer_for(backbone)
    ids = [[*row.ids, backbone.tokenizer.eos_token_id] for row in scorer.encode(samples)]
    longest = max(map(len, ids))
    padded = {
        "input_ids": torch.tensor([row + [0] * (longest - len(row)) for row in ids]),
        "attention_mask": torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in ids]
        ),
    }
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    with torch.no_grad():
        expected = float(backbone.model(**padded, labels=labels).loss)
    _, _, log = tune_tiny(
        tiny_folder, tmp_path, samples=samples, loss="all-tokens", dropout=0.0, epochs=1
    )
    assert losses(log) == [pytest.approx(expected, abs=1e-5)]


def test_collate():
    rows = [TokenRow([5, 6, 7, 8], [0, 2], [True, False]), TokenRow([5, 9], [0], [False])]
    padded = {k: v.tolist() for k, v in collate(rows, "answers", by_tree=False).items()}
    assert padded == {
        "ids_bt": [[5, 6, 7, 8], [5, 9, 0, 0]],
        "at_n2": [[0, 0], [0, 2], [1, 0]],
        "targets_n": [True, False, False],
    }
    shared = collate(rows, "answers", by_tree=True)
    assert shared["plan"].tree.ids_n.tolist() == [5, 6, 7, 8, 9]
    assert shared["plan"].read.tolist() == [0, 2]
    assert shared["at_n"].tolist() == [0, 1, 0]
    every = collate(rows, "all-tokens", by_tree=False)
    assert every["at_n2"].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]
    assert every["targets_n"].tolist() == [6, 7, 8, 9]
    rows.append(TokenRow([5, 6, 7], [0], []))
    response = collate(rows, "response", by_tree=False)
    assert response["at_n2"].tolist() == [[0, 2], [1, 0], [2, 0], [2, 1]]
    assert response["targets_n"].tolist() == [8, 9, 6, 7]


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_that_share_a_prefix_tune_as_rows_that_do_not(
    tiny_folder, tmp_path, monkeypatch, loss
):
    runs = []
    for i in range(2):
        runs.append(tune_tiny(tiny_folder, tmp_path / str(i), dropout=0.0, epochs=2, loss=loss))
        monkeypatch.setattr(tuning, "takes_trees", lambda *_: False)
    np.testing.assert_allclose(losses(runs[0][2]), losses(runs[1][2]), atol=1e-4)


def test_the_loss_on_the_response_is_the_cross_entropy_of_its_tokens(backbone):
    records = [Instruction("Name a colour.", "", "Blue"), Instruction("Add.", "1, 2", "It is 3.")]
    rows = encode_instructions(backbone.tokenizer, records, max_tokens=512)
    expected = []
    with torch.no_grad():
        for row in rows:
            logits = backbone.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            (position,) = row.positions
            wanted = row.ids[position + 1 :]
            expected += [-float(logits[position + i, id_]) for i, id_ in enumerate(wanted)]
        loss = LOSSES["response"](
            backbone.model, collate(rows, "response", by_tree=False), Answers(5, 9)
        )
    assert float(loss) == pytest.approx(np.mean(expected), abs=1e-5)


def test_early_stopping_keeps_the_best_weights(tiny_folder, tmp_path):
    """Validated on the opposite of what is learnt, the first epoch is the best."""
    valid = unlike(generous_splits().valid[:24])
    backbone, model, log = tune_tiny(tiny_folder, tmp_path, valid=valid, epochs=9, patience=2)
    aucs = [(entry["step"], entry["eval_auc"]) for entry in log if "eval_auc" in entry]
    assert [step for step, _ in aucs] == [6, 12, 18]
    assert max(auc for _, auc in aucs) == aucs[0][1]
    best = load_file(tmp_path / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors")
    last = load_file(tmp_path / "checkpoints" / "checkpoint-18" / "adapter_model.safetensors")
    assert same(best, weights(model))
    assert not same(best, last)
    scorer = scorer_for(backbone, model)
    scores = score_rows(model, scorer.encode(valid), scorer.answers)
    assert target_auc([sample.liked for sample in valid], scores) == aucs[0][1]


def test_validation_that_gets_better_lets_all_epochs_run(tiny_folder, tmp_path):
    valid = generous_splits().valid[:24]
    log = tune_tiny(tiny_folder, tmp_path, valid=valid, patience=3)[2]
    assert len(losses(log)) == STEPS


def test_without_validation_the_last_weights_are_kept(tiny_folder, tmp_path):
    model = tune_tiny(tiny_folder, tmp_path)[1]
    newest = last_checkpoint(tmp_path / "checkpoints")
    assert newest.name == f"checkpoint-{STEPS}"
    assert same(load_file(newest / "adapter_model.safetensors"), weights(model))
    assert not model.training


def test_a_loss_that_is_not_a_number_stops_tuning(tiny_folder, tmp_path):
    with pytest.raises(
        TuningError, match=r"loss became nan at step \d.*lower learning_rate \(1e\+30"
    ):
        tune_tiny(tiny_folder, tmp_path, learning_rate=1e30)


def test_a_loss_that_explodes_stops_tuning(tiny_folder, tmp_path):
    """With a head of weights near 2 rather than 0.02 there is room for it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in tiny_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 100
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TuningError, match=r"loss became \d+.* at step \d+ \(it began at \d"):
        tune_tiny(folder, tmp_path / "run", learning_rate=100.0)


def test_weights_that_break_at_the_last_step_are_seen_in_validation(tiny_folder, tmp_path):
    with pytest.raises(TuningError, match="validation scores are not finite after step 1"):
        tune_tiny(
            tiny_folder,
            tmp_path,
            valid=generous_splits().valid[:24],
            samples=shots()[:4],
            learning_rate=1e38,
            warmup=0,
            epochs=1,
        )


@pytest.mark.parametrize(
    ("warmup", "rates"), [(0, [1.0, 0.75]), (0.5, [0.0, 0.5]), (4, [0.0, 0.25]), (9, [0.0, 0.25])]
)
def test_warmup_is_a_share_of_the_steps_or_their_number(tiny_folder, tmp_path, warmup, rates):
    log = tune_tiny(
        tiny_folder,
        tmp_path,
        samples=shots()[:4],
        epochs=4,
        warmup=warmup,
        learning_rate=1.0,
        schedule="linear",
    )[2]
    assert [entry["learning_rate"] for entry in log][:2] == pytest.approx(rates)


def test_progress_and_silence(tiny_folder, tmp_path, capfd):
    calls = []
    tune_tiny(
        tiny_folder,
        tmp_path,
        valid=generous_splits().valid[:24],
        on_progress=lambda *call: calls.append(call),
    )
    assert [done for done, _, note in calls if note.startswith("loss ")] == [*range(1, STEPS + 1)]
    assert {total for _, total, _ in calls} == {STEPS}
    assert [done for done, _, note in calls if note.startswith("AUC ")] == [6, 12, 18]
    assert capfd.readouterr() == ("", "")


def test_the_log_is_on_disk(tiny_folder, tmp_path):
    log = tune_tiny(tiny_folder, tmp_path, epochs=1)[2]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == log
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]


def refused(model_folder, folder, **changes):
    with pytest.raises(ValueError, match=r".") as error:
        tune_tiny(model_folder, folder, **changes)
    assert not folder.exists()
    return str(error.value)


def test_what_cannot_be_tuned_is_refused_before_anything_is_written(tiny_folder, tmp_path):
    unlabelled = [replace(sample, liked=None) for sample in shots()[:4]]
    likes = [sample for sample in shots() if sample.liked]
    for changes, message in (
        ({"samples": []}, "nothing to tune on"),
        ({"samples": unlabelled}, "some rows have no label"),
        ({"valid": unlabelled}, "some rows have no label"),
        ({"valid": likes}, "validation rows are all likes or all dislikes"),
        ({"batch_size": 6}, "batch_size (6) must be a multiple of micro_batch (4)"),
        ({"loss": "hinge"}, "loss must be one of answers, response, all-tokens; got 'hinge'"),
    ):
        assert message in refused(tiny_folder, tmp_path / "run", **changes)


def test_target_auc():
    assert target_auc([True, False, True], np.array([2.0, 1.0, 0.5])) == 0.5
    assert target_auc([True, False], np.array([2.0, 1.0])) == 1.0
    assert target_auc([True, True], np.array([2.0, 1.0])) == 0.5
