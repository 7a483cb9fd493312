"""A start that failed leaves nothing behind; what is overwritten, and what never is."""

import signal

import numpy as np
import pytest
from common.tiny_runs import assert_same_end, metrics, names, tiny_trainer

from minitransformer.data import TokenWindows
from minitransformer.errors import DivergedError, InputError, Stopped
from minitransformer.layers import Linear
from minitransformer.recipes import load_recipe
from minitransformer.recipes.display import Display
from minitransformer.recipes.run import train_recipe
from minitransformer.training import Callback


class FailAt(Callback):
    def __init__(self, moment, error):
        self.error = error
        setattr(self, moment, self.fail)

    def fail(self, *_):
        error, self.error = self.error, None
        if error is not None:
            raise error


@pytest.mark.parametrize("moment", ["on_train_begin", "on_log", "on_evaluate"])
@pytest.mark.parametrize("error", [MemoryError, InputError, KeyboardInterrupt])
def test_a_start_that_failed_leaves_nothing_that_blocks_the_next(tmp_path, moment, error):
    class Writes(Callback):
        def on_train_begin(self, trainer):
            for name in ("run.json", "tokenizer.json"):
                (trainer.output_dir / name).write_text("{}")

    for folder in (tmp_path / "deep" / "run", tmp_path / "made"):
        if folder.name == "made":
            folder.mkdir()
            (folder / "notes.txt").write_text("mine")
        callbacks = [Writes(), FailAt(moment, error("no"))]
        trainer = tiny_trainer(folder, callbacks=callbacks, load_best_model_at_end=True)
        with pytest.raises(error):
            trainer.train()
        assert not (tmp_path / "deep").exists()
        if folder.name == "made":
            assert names(folder) == ["notes.txt"]
        trainer.train()
        tiny_trainer(tmp_path / f"expected {folder.name}", load_best_model_at_end=True).train()
        assert_same_end(folder, tmp_path / f"expected {folder.name}")
        if folder.name == "run":
            (tmp_path / "deep").rename(tmp_path / "done")


def test_a_run_that_diverges_at_its_first_step_leaves_nothing(tmp_path):
    trainer = tiny_trainer(tmp_path / "run")
    trainer.eval_dataset = None
    trainer.model.norm.gain.value[0] = np.nan
    with pytest.raises(DivergedError):
        trainer.train()
    assert names(tmp_path) == []


def test_ctrl_c_before_the_first_step_leaves_nothing_and_says_so(tmp_path):
    class Interrupt(Callback):
        def on_evaluate(self, trainer, line):
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="nothing was trained yet") as stopped:
        tiny_trainer(tmp_path / "run", callbacks=[Interrupt()]).train()
    assert stopped.value.folder is None
    assert names(tmp_path) == []


def test_a_whole_run_that_is_stopped_before_its_first_step_leaves_nothing(tmp_path):
    class Interrupt(Display):
        def on_evaluate(self, trainer, line):
            signal.raise_signal(signal.SIGTERM)

    recipe = load_recipe("sort", ["layers=1", "max_steps=3"])
    for folder in (tmp_path / "runs" / "sort", tmp_path):
        with pytest.raises(Stopped):
            train_recipe(recipe, folder, display=Interrupt())
        assert names(tmp_path) == []


def test_after_the_first_step_what_there_is_stays(tmp_path):
    with pytest.raises(InputError):
        tiny_trainer(tmp_path / "run", callbacks=[FailAt("on_step_end", InputError("no"))]).train()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [0]


def test_a_failed_start_of_a_run_that_goes_on_takes_nothing_away(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=0).train()
    before = names(tmp_path / "run")
    with pytest.raises(MemoryError):
        tiny_trainer(tmp_path / "run", callbacks=[FailAt("on_train_begin", MemoryError())]).train(
            resume_from_checkpoint=True
        )
    assert "checkpoint-0" in names(tmp_path / "run")
    tiny_trainer(tmp_path / "run", max_steps=0).train(resume_from_checkpoint=True)
    assert names(tmp_path / "run") == before


def test_another_run_is_overwritten_where_that_is_asked_for_and_nothing_else_is(tmp_path):
    run = tmp_path / "run"
    tiny_trainer(run, seed=7, load_best_model_at_end=True, max_steps=14).train()
    for name in ("notes.txt", "checkpoint-x", "training.png", "run.json"):
        (run / name).write_text("mine")
    tiny_trainer(run, overwrite_output_dir=True, save_total_limit=1).train()
    tiny_trainer(tmp_path / "expected", save_total_limit=1).train()
    assert_same_end(run, tmp_path / "expected")
    assert names(run) == sorted([*names(tmp_path / "expected"), "notes.txt", "checkpoint-x"])


def test_going_on_overwrites_nothing(tmp_path):
    settings = {"overwrite_output_dir": True}
    tiny_trainer(tmp_path / "run", max_steps=4, lr_scheduler_type="constant", **settings).train()
    written = (tmp_path / "run" / "checkpoint-4").stat().st_mtime_ns
    trainer = tiny_trainer(tmp_path / "run", lr_scheduler_type="constant", **settings)
    trainer.train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "checkpoint-4").stat().st_mtime_ns == written
    tiny_trainer(tmp_path / "expected", lr_scheduler_type="constant").train()
    assert_same_end(tmp_path / "run", tmp_path / "expected")


def test_wrong_data_overwrites_nothing(tmp_path):
    tiny_trainer(tmp_path / "run").train()
    before = names(tmp_path / "run")
    with pytest.raises(InputError):
        tiny_trainer(tmp_path / "run", TokenWindows(np.full(300, 99), 8), overwrite_output_dir=True).train()
    assert names(tmp_path / "run") == before


def test_a_model_without_an_architecture_is_refused_before_the_first_step(tmp_path):
    trainer = tiny_trainer(tmp_path / "run")
    trainer.model = Linear(2, 2).build()
    with pytest.raises(TypeError, match="there is no architecture with a Linear"):
        trainer.train()
    assert not (tmp_path / "run").exists()
