"""What ``train`` returns, and the progress bar."""

from dataclasses import fields

import numpy as np
import pytest
from common.tiny_runs import VOCABULARY, tiny_model, tiny_trainer, windows

from minitransformer.errors import InputError
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import (
    Callback,
    EarlyStopping,
    ProgressBar,
    Trainer,
    TrainingArguments,
    TrainOutput,
)


def test_train_returns_what_hugging_faces_does(tmp_path, transformers):
    from transformers.trainer_utils import TrainOutput as Theirs

    assert TrainOutput._fields == Theirs._fields


@pytest.mark.parametrize("logging_steps", [1, 3, 100])
def test_the_training_loss_is_the_mean_over_all_steps_resumed_or_not(tmp_path, logging_steps):
    losses = []

    class Losses(Callback):
        def on_step_end(self, trainer, result):
            losses.append(result.loss)

    settings = {"logging_steps": logging_steps, "per_device_train_batch_size": 4}
    whole = tiny_trainer(tmp_path / "whole", callbacks=[Losses()], **settings).train()
    assert whole.global_step == 10
    assert whole.training_loss == whole.metrics["train_loss"] == pytest.approx(np.mean(losses), rel=1e-12)
    assert whole.metrics["epoch"] == 10 / windows().batches_per_epoch(4)
    assert whole.metrics["train_samples_per_second"] == pytest.approx(
        4 * whole.metrics["train_steps_per_second"]
    )
    with pytest.raises(InputError):
        tiny_trainer(tmp_path / "run", callbacks=[Stop(6)], **settings).train()
    resumed = tiny_trainer(tmp_path / "run", **settings).train(resume_from_checkpoint=True)
    assert (resumed.global_step, resumed.training_loss) == (10, whole.training_loss)
    made = resumed.metrics["train_steps_per_second"] * resumed.metrics["train_runtime"]
    assert made == pytest.approx(6)
    again = tiny_trainer(tmp_path / "run", **settings).train(resume_from_checkpoint=True)
    assert (again.training_loss, again.metrics["train_steps_per_second"]) == (whole.training_loss, 0)


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer, result):
        if trainer.step == self.step:
            raise InputError("stop")


def test_a_run_of_no_steps_has_no_training_loss(tmp_path):
    done = tiny_trainer(tmp_path / "run", max_steps=0).train()
    assert done[:2] == (0, None)


def test_a_progress_bar_is_there_unless_it_is_not_wanted(tmp_path):
    def bars(callbacks, **settings):
        arguments = TrainingArguments(str(tmp_path / "run"), **settings)
        trainer = Trainer(tiny_model(), arguments, windows(), windows(), callbacks)
        return [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]

    class Mine(ProgressBar):
        pass

    mine = Mine()
    for callbacks in (None, [], [EarlyStopping()]):
        assert len(bars(callbacks)) == 1
        assert bars(callbacks, disable_tqdm=True) == []
    assert bars([EarlyStopping(), mine]) == bars([mine], disable_tqdm=True) == [mine]


def test_the_bar_tells_of_every_evaluation(tmp_path, capsys):
    tiny_trainer(tmp_path / "run", disable_tqdm=False).train()
    told = capsys.readouterr().out
    assert [f"step {step}: " in told for step in (0, 4, 8, 10)] == [True] * 4


def test_a_model_that_was_made_elsewhere_is_trained_on(tmp_path):
    """Fine-tuning from Python: what ``load_model`` returns is a model like any other."""
    from minitransformer.pretrained.model_folder import load_model

    tiny_trainer(tmp_path / "first").train()
    model = load_model(tmp_path / "first")
    start = model.flat.values.copy()
    arguments = TrainingArguments(str(tmp_path / "second"), max_steps=3, disable_tqdm=True)
    trainer = Trainer(model=model, args=arguments, train_dataset=windows(), eval_dataset=windows())
    trainer.train()
    assert np.abs(model.flat.values - start).max() > 1e-4
    fresh = GPT(GPTConfig(**{field.name: getattr(model.config, field.name) for field in fields(GPTConfig)}))
    assert trainer.history[0]["val_loss"] < np.log(VOCABULARY) + 0.2
    assert fresh.config == load_model(tmp_path / "second").config
