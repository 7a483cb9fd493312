"""The output folder: which checkpoints are kept, what ends a run, and folders that are refused."""

import math
import os

import numpy as np
import pytest
from common.tiny_runs import OnStep, assert_same_end, metrics, pretend_losses, saved_steps, tiny_trainer

from minitransformer.errors import DivergedError, InputError
from minitransformer.pretrained.model_folder import load_model


@pytest.mark.parametrize(("limit", "kept"), [(1, [7]), (2, [6, 7]), (3, [4, 6, 7]), (None, [2, 4, 6, 7])])
def test_the_newest_checkpoints_are_kept(tmp_path, limit, kept):
    tiny_trainer(tmp_path / "run", max_steps=7, save_steps=2, save_total_limit=limit).train()
    assert saved_steps(tmp_path / "run") == kept


def test_more_than_nine_checkpoints_are_counted_as_numbers(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=12, save_steps=1, save_total_limit=3).train()
    assert saved_steps(tmp_path / "run") == [10, 11, 12]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "trainer_state.json"])
def test_a_newest_checkpoint_that_is_damaged_does_not_drive_out_the_last_good_one(
    tmp_path, monkeypatch, name
):
    """As on a disk that loses what it was given: every checkpoint from step 4 on is damaged at once."""
    from minitransformer.training import trainer as module

    written = module.save_checkpoint

    def damaging(output_dir, model, optimiser, state, save_model):
        written(output_dir, model, optimiser, state, save_model)
        if state["step"] >= 4:
            path = output_dir / f"checkpoint-{state['step']}" / name
            path.write_bytes(path.read_bytes()[:-9])

    monkeypatch.setattr(module, "save_checkpoint", damaging)
    trainer = tiny_trainer(tmp_path / "run", max_steps=6, save_steps=1, save_total_limit=1)
    with pytest.warns(UserWarning, match="damaged|is not JSON") as told:
        trainer.train()
    assert all("older checkpoints are kept" in str(warning.message) for warning in told)
    assert (tmp_path / "run" / "checkpoint-3").is_dir()


def test_divergence_names_the_step_and_what_is_kept(tmp_path):
    def spoil(trainer, result):
        if trainer.step == 6:
            trainer.model.norm.gain.value[0] = np.inf

    trainer = tiny_trainer(tmp_path / "run", callbacks=[OnStep(spoil)])
    with pytest.raises(
        DivergedError,
        match=r"diverged at step 7: the loss is nan; try a lower learning_rate; .*run keeps the checkpoint "
        "of step 4",
    ):
        trainer.train()
    assert np.isfinite(load_model(tmp_path / "run" / "checkpoint-4").flat.values).all()
    assert metrics(tmp_path / "run")[-1]["step"] == 6
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_divergence_before_anything_was_saved_says_so(tmp_path):
    trainer = tiny_trainer(tmp_path / "run")
    trainer.eval_dataset = None
    trainer.model.norm.gain.value[0] = np.nan
    with pytest.raises(DivergedError, match=r"diverged at step 1: the loss is nan.*nothing was saved yet"):
        trainer.train()


def test_a_validation_loss_that_is_no_number_is_divergence(tmp_path, monkeypatch):
    pretend_losses(monkeypatch, [3.0, 2.0, math.nan])
    with pytest.raises(DivergedError, match=r"diverged at step 8: the validation loss is nan.* of step 4"):
        tiny_trainer(tmp_path / "run").train()
    assert all(
        line["val_loss"] is None or math.isfinite(line["val_loss"]) for line in metrics(tmp_path / "run")
    )


def test_a_folder_that_holds_another_run_is_refused_and_stays_as_it_is(tmp_path):
    tiny_trainer(tmp_path / "run").train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="holds another run; continue it with --resume"):
        tiny_trainer(tmp_path / "run", seed=1).train()
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "model.safetensors", "metrics.jsonl"),
        *("checkpoint-3/config.json", "best/model.safetensors"),
    ],
)
def test_any_part_of_another_run_is_enough_to_refuse(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="holds another run"):
        tiny_trainer(tmp_path).train()


def test_a_folder_with_other_things_is_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    tiny_trainer(tmp_path).train()
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_is_no_output_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for resuming in (False, True):
        with pytest.raises(InputError, match="is a file; expected a folder"):
            tiny_trainer(tmp_path / "file").train(resume_from_checkpoint=resuming)


def test_a_second_trainer_in_the_same_folder_is_refused(tmp_path):
    refused = []

    def start_another(trainer, result):
        for resuming in (True, False):
            with pytest.raises(InputError) as refusal:
                tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=resuming)
            refused.append(str(refusal.value))

    pytest.importorskip("fcntl")
    tiny_trainer(tmp_path / "run", callbacks=[OnStep(start_another)], max_steps=2).train()
    tiny_trainer(tmp_path / "alone", max_steps=2).train()
    assert_same_end(tmp_path / "run", tmp_path / "alone")
    assert "another process is writing to" in refused[0]
    assert "holds another run" in refused[1]


def test_a_second_process_in_the_same_folder_is_refused(tmp_path):
    import fcntl

    (tmp_path / "run").mkdir()
    descriptor = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process is writing to"):
        tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    os.close(descriptor)
    tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=True)
