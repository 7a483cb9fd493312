"""The best model of a run: what lies outside of checkpoints agrees with the one that is gone on from."""

import json
import shutil

import numpy as np
import pytest
from common.tiny_runs import assert_same_end, metrics, names, tiny_trainer, windows

from minitransformer.errors import InputError
from minitransformer.evaluation import scores
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training import Callback, EarlyStopping, KeepBest, Trainer
from minitransformer.training.best import best_step

EVERY = {"eval_steps": 1, "save_steps": 4, "load_best_model_at_end": True}


class StoppedError(Exception):
    """As if the process had ended here."""


class Fail(Callback):
    """Ends the run after ``step`` steps, once it is evaluated."""

    def __init__(self, step):
        self.step = step

    def on_evaluate(self, trainer, line):
        if trainer.step == self.step:
            raise StoppedError


class Values(Callback):
    """Keeps the weights of every evaluation."""

    def __init__(self):
        self.at = {}

    def on_evaluate(self, trainer, line):
        self.at[trainer.step] = trainer.model.flat.values.copy()


@pytest.fixture
def pretended(monkeypatch):
    """Let the evaluation after each step find a chosen loss, whatever the model."""

    class Losses(Callback):
        def __init__(self, losses):
            self.losses = losses

        def loss(self, model, dataset):
            return float(self.losses[self.trainer.step])

        def on_train_begin(self, trainer):
            self.trainer = trainer
            monkeypatch.setattr(scores, "sampled_loss", self.loss)

    return Losses


def saved(folder):
    return json.loads((folder / "config.json").read_text())["minitransformer"]


def values(folder):
    return load_model(folder).flat.values


LOSSES = [9, 8, 7, 6, 3, 2, 5, 5, 5, 1, 5]


def test_stopped_after_a_better_one_and_resumed_from_before_it_with_fewer_steps(tmp_path, pretended):
    """Step 5 is better than step 4, but the run that goes on from checkpoint 4 never makes it."""
    losses = pretended([9, 8, 7, 6, 3, 2, 5, 5])
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[losses, Fail(5)], **EVERY).train()
    assert saved(tmp_path / "run" / "best")["step"] == 4  # the failure came before step 5 was kept
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[losses, Fail(6)], **EVERY).train(
            resume_from_checkpoint=True
        )
    assert saved(tmp_path / "run" / "best")["step"] == 5
    losses.losses[5] = 4
    tiny_trainer(tmp_path / "run", callbacks=[losses], **EVERY | {"max_steps": 6}).train(
        resume_from_checkpoint=True
    )
    tiny_trainer(tmp_path / "expected", callbacks=[losses], **EVERY | {"max_steps": 6}).train()
    ended = saved(tmp_path / "run")
    assert (ended["step"], ended["best_step"]) == (6, 4)
    assert saved(tmp_path / "run" / "best")["step"] == 4
    np.testing.assert_array_equal(values(tmp_path / "run"), values(tmp_path / "run" / "best"))
    np.testing.assert_array_equal(values(tmp_path / "run"), values(tmp_path / "run" / "checkpoint-4"))
    assert [line["val_loss"] for line in metrics(tmp_path / "run")] == losses.losses[:7]


@pytest.mark.parametrize("stop", range(11))
def test_a_run_that_failed_at_any_evaluation_keeps_the_same_best(tmp_path, pretended, stop):
    for name, callbacks in (("run", [Fail(stop)]), ("expected", [])):
        trainer = tiny_trainer(tmp_path / name, callbacks=[pretended(LOSSES), *callbacks], **EVERY)
        if callbacks:
            with pytest.raises(StoppedError):
                trainer.train()
            trainer = tiny_trainer(tmp_path / name, callbacks=[pretended(LOSSES)], **EVERY)
        trainer.train(resume_from_checkpoint=bool(callbacks))
    assert_same_end(tmp_path / "run", tmp_path / "expected")
    assert saved(tmp_path / "run")["best_step"] == saved(tmp_path / "run" / "best")["step"] == 9


def test_every_checkpoint_holds_the_best_of_its_time(tmp_path, pretended):
    seen = Values()
    settings = EVERY | {"save_steps": 3}
    tiny_trainer(tmp_path / "run", callbacks=[pretended(LOSSES), seen], **settings).train()
    for step, best in ((3, 3), (6, 5), (9, 9), (10, 9)):
        kept = tmp_path / "run" / f"checkpoint-{step}" / "best"
        assert saved(kept)["step"] == best
        np.testing.assert_array_equal(values(kept), seen.at[best])


def test_a_best_model_that_was_kept_by_an_earlier_version_is_used_if_it_is_the_right_one(tmp_path, pretended):
    losses = [9, 8, 7, 6, 3, 4, 5, 2, 5, 5, 5]
    for stop, best in (
        (7, 4),
        (8, 7),
    ):  # after step 8 the best is that of step 7: the run goes on from step 4
        run = tmp_path / str(stop)
        with pytest.raises(StoppedError):
            tiny_trainer(run, callbacks=[pretended(losses), Fail(stop)], **EVERY).train()
        assert saved(run / "best")["step"] == best
        shutil.rmtree(run / "checkpoint-4" / "best")
        going = tiny_trainer(run, callbacks=[pretended(losses)], **EVERY | {"max_steps": 6})
        if best == 4:
            going.train(resume_from_checkpoint=True)
            assert saved(run)["best_step"] == 4
        else:
            with pytest.warns(UserWarning, match="the best model, that of step 4, was not kept"):
                going.train(resume_from_checkpoint=True)
            assert "best_step" not in saved(run)
            assert not (run / "best").exists()


def test_a_damaged_best_model_is_a_damaged_checkpoint(tmp_path, pretended):
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[pretended(LOSSES), Fail(9)], **EVERY).train()
    path = tmp_path / "run" / "checkpoint-8" / "best" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.warns(UserWarning, match=r"best.model\.safetensors.*resuming after step 4"):
        tiny_trainer(tmp_path / "run", callbacks=[pretended(LOSSES)], **EVERY).train(
            resume_from_checkpoint=True
        )
    tiny_trainer(tmp_path / "expected", callbacks=[pretended(LOSSES)], **EVERY).train()
    assert_same_end(tmp_path / "run", tmp_path / "expected")


def test_a_best_model_without_a_checkpoint_goes_with_the_run_that_made_it(tmp_path, pretended):
    settings = EVERY | {"save_steps": 100}
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[pretended(LOSSES), Fail(6)], **settings).train()
    tiny_trainer(
        tmp_path / "run", callbacks=[pretended([*range(10, -1, -1)])], **settings, max_steps=0
    ).train(resume_from_checkpoint=True)
    assert saved(tmp_path / "run" / "best")["step"] == 0


def test_a_disk_without_links_has_copies(tmp_path, monkeypatch, pretended):
    from minitransformer.training import best

    def refuse(*paths):
        raise OSError("no links here")

    monkeypatch.setattr(best.os, "link", refuse)
    tiny_trainer(tmp_path / "run", callbacks=[pretended(LOSSES)], **EVERY).train()
    np.testing.assert_array_equal(
        values(tmp_path / "run" / "checkpoint-10" / "best"), values(tmp_path / "run" / "best")
    )


def test_an_extended_run_goes_on_with_the_rates_of_the_longer_one(tmp_path, pretended):
    losses = [9, 8, 7, 6, 3, 4, 5, 2, 5, 5, 5]
    settings = EVERY | {"lr_scheduler_type": "cosine"}
    short = tiny_trainer(tmp_path / "run", callbacks=[pretended(losses)], **settings | {"max_steps": 6})
    short.train()
    assert saved(tmp_path / "run")["best_step"] == 4
    longer = tiny_trainer(tmp_path / "run", callbacks=[pretended(losses)], **settings | {"max_steps": 10})
    done = longer.train(resume_from_checkpoint=True)
    assert done.global_step == 10
    for line in longer.history[1:]:
        assert line["learning_rate"] == longer.args.learning_rate_at(
            line["step"] - 1, 6 if line["step"] <= 6 else 10
        )
    ended = saved(tmp_path / "run")
    assert (ended["step"], ended["best_step"]) == (10, 7)
    assert saved(tmp_path / "run" / "best")["step"] == 7
    np.testing.assert_array_equal(values(tmp_path / "run"), values(tmp_path / "run" / "best"))
    assert "best_step" not in saved(tmp_path / "run" / "checkpoint-10")


@pytest.mark.parametrize("callback", [EarlyStopping(), KeepBest()], ids=["stopping", "best"])
def test_what_goes_by_the_validation_loss_says_that_there_is_none(tmp_path, callback):
    trainer = tiny_trainer(tmp_path / "run")
    trainer = Trainer(trainer.model, trainer.args, windows(), callbacks=[callback])
    with pytest.raises(InputError, match=f"{type(callback).__name__} needs a validation loss; give"):
        trainer.train()
    assert names(tmp_path) == []


def test_the_best_step_is_the_last_of_equals():
    history = [{"step": step, "val_loss": loss} for step, loss in enumerate([3, None, 1.5, 2, 1.5, 4])]
    assert best_step(history) == 4
    assert best_step(history[1:2]) is None
