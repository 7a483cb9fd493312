"""A run that was stopped, by whatever, and resumed ends bit for bit as if it had never been stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from common.killed_runs import trainer_of
from common.processes import running
from common.tiny_runs import (
    StopAt,
    StoppedError,
    all_bytes,
    assert_same_end,
    fail,
    metrics,
    names,
    saved_steps,
    sequences,
    tiny_model,
    tiny_trainer,
    windows,
)

from minitransformer import reference
from minitransformer.errors import InputError, Stopped
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training import KeepBest, Trainer, TrainingArguments
from minitransformer.training.arguments import MAY_CHANGE

RUNS = {
    "windows adamw": {},
    "sequences adamw": {"dataset": sequences, "gradient_accumulation_steps": 2},
    "windows sgd float64": {"optim": "sgd", "momentum": 0.9, "learning_rate": 0.1, "dtype": "float64"},
    "sequences adamw float64": {"dataset": sequences, "dtype": "float64", "logging_steps": 3},
    "sequences sgd": {"dataset": sequences, "optim": "sgd", "learning_rate": 0.1, "save_total_limit": 1},
}


def trainer_for(run, folder, callbacks=()):
    settings = dict(RUNS[run])
    dataset = settings.pop("dataset", windows)
    return tiny_trainer(folder, dataset(), callbacks, **settings)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return a function from the name of a run to its folder, trained in one go."""
    folders = {}

    def folder(run):
        if run not in folders:
            folders[run] = tmp_path_factory.mktemp("uninterrupted") / "run"
            trainer_for(run, folders[run]).train()
        return folders[run]

    return folder


# --- stopped


@pytest.mark.parametrize("steps", [[1], [4], [7], [3, 4, 6, 9]], ids=str)
@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_failed_and_was_resumed_ends_the_same(tmp_path, uninterrupted, run, steps):
    for step in steps:
        with pytest.raises(StoppedError):
            trainer_for(run, tmp_path / "run", [StopAt("on_step_end", step, fail)]).train(
                resume_from_checkpoint=True
            )
    trainer_for(run, tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted(run))


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("on_train_begin", 0),
        ("on_log", 0),
        ("on_evaluate", 0),
        ("on_save", 4),
        ("on_log", 7),
        ("on_evaluate", 8),
        ("on_save", 8),
        ("on_step_end", 10),
        ("on_log", 10),
        ("on_save", 10),
        ("on_train_end", 10),
        ("on_train_exit", 10),
    ],
)
def test_whenever_it_failed(tmp_path, uninterrupted, moment, step):
    with pytest.raises(StoppedError):
        trainer_for("windows adamw", tmp_path / "run", [StopAt(moment, step, fail)]).train()
    trainer_for("windows adamw", tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))
    assert not list((tmp_path / "run").rglob("*.part"))


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("run", RUNS)
def test_a_run_that_was_signalled_and_resumed_ends_the_same(tmp_path, uninterrupted, run, sent):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = StopAt("on_step_end", 7, lambda: signal.raise_signal(sent))
    with pytest.raises(Stopped) as stopped:
        trainer_for(run, tmp_path / "run", [stop]).train()
    assert stopped.value.signal == sent
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert (tmp_path / "run" / "checkpoint-7").is_dir()
    assert load_model(tmp_path / "run" / "checkpoint-7").config == tiny_model().config
    trainer_for(run, tmp_path / "run").train(resume_from_checkpoint=True)
    shutil.rmtree(tmp_path / "run" / "checkpoint-7", ignore_errors=True)
    assert_same_end(tmp_path / "run", uninterrupted(run))


@pytest.mark.parametrize("moment", ["on_log", "on_evaluate"])
def test_a_signal_before_the_first_step(tmp_path, uninterrupted, moment):
    stop = StopAt(moment, 0, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Stopped):
        trainer_for("windows adamw", tmp_path / "run", [stop]).train()
    trainer_for("windows adamw", tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))


def test_a_signal_in_the_last_step_comes_too_late(tmp_path, uninterrupted):
    stop = StopAt("on_step_end", 10, lambda: signal.raise_signal(signal.SIGTERM))
    trainer_for("windows adamw", tmp_path / "run", [stop]).train()
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))


def test_a_second_signal_does_not_wait_for_the_step(tmp_path, uninterrupted):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        trainer_for("windows adamw", tmp_path / "run", [StopAt("on_step_end", 6, twice)]).train()
    assert names(tmp_path / "run") == ["checkpoint-4", "metrics.jsonl"]
    trainer_for("windows adamw", tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))


def test_the_trainer_that_was_signalled_can_go_on_itself(tmp_path, uninterrupted):
    stop = StopAt("on_step_end", 7, lambda: signal.raise_signal(signal.SIGINT))
    trainer = trainer_for("windows adamw", tmp_path / "run", [stop])
    with pytest.raises(Stopped):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")
@pytest.mark.parametrize(("kind", "kills"), [("windows", 20), ("sequences", 5)])
def test_a_run_that_was_killed_again_and_again_ends_the_same(tmp_path, kind, kills):
    """At random instants, most of them within the writing of a checkpoint."""
    with running(
        [sys.executable, "-m", "common.killed_runs", kind, tmp_path, str(kills)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as killing:
        output, errors = killing.communicate(timeout=300)
    assert (killing.returncode, errors) == (0, "")
    seen = json.loads(output)
    assert len(seen["steps"]) >= kills
    assert seen["within_a_save"] >= kills // 10
    assert seen["steps"] == sorted(seen["steps"])
    assert len(set(seen["steps"])) > kills // 4
    with reference():
        trainer_of(kind, tmp_path / "expected").train()
    assert_same_end(tmp_path / "run", tmp_path / "expected")
    assert len(saved_steps(tmp_path / "run")) <= 2
    assert not list((tmp_path / "run").rglob("*.part"))


def test_what_a_killed_process_left_is_removed(tmp_path, uninterrupted):
    with pytest.raises(StoppedError):
        trainer_for("windows adamw", tmp_path / "run", [KeepBest(), StopAt("on_step_end", 7, fail)]).train()
    for left in (".checkpoint-8.0a0a0a0a.part", "best/.model.safetensors.0b0b0b0b.part"):
        (tmp_path / "run" / left).mkdir()
        (tmp_path / "run" / left / ".model.safetensors.0c0c0c0c.part").write_text("half of")
    (tmp_path / "run" / ".metrics.jsonl.0d0d0d0d.part").write_text("half of")
    trainer_for("windows adamw", tmp_path / "run", [KeepBest()]).train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))
    assert not list((tmp_path / "run").rglob("*.part"))


# --- resumed


def test_with_nothing_saved_it_starts(tmp_path, uninterrupted):
    trainer_for("windows adamw", tmp_path / "run").train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))


@pytest.mark.parametrize("run", RUNS)
def test_a_finished_run_stays_as_it_is(tmp_path, uninterrupted, run):
    shutil.copytree(uninterrupted(run), tmp_path / "run")
    before = all_bytes(tmp_path / "run")
    trainer = trainer_for(run, tmp_path / "run")
    trainer.train(resume_from_checkpoint=True)
    assert_same_end(tmp_path / "run", uninterrupted(run))
    after = all_bytes(tmp_path / "run")
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} <= {tmp_path / "run" / "model.safetensors"}
    np.testing.assert_array_equal(
        trainer.model.flat.values,
        load_model(uninterrupted(run), trainer.model.flat.values.dtype.name).flat.values,
    )


def test_a_finished_run_of_no_steps_stays_as_it_is(tmp_path):
    for resuming in (False, True):
        tiny_trainer(tmp_path / "run", max_steps=0).train(resume_from_checkpoint=resuming)
        assert [line["step"] for line in metrics(tmp_path / "run")] == [0]


def test_more_steps_make_a_longer_run(tmp_path):
    settings = {"lr_scheduler_type": "constant", "eval_steps": 3, "save_total_limit": 2}
    tiny_trainer(tmp_path / "run", max_steps=6, **settings).train()
    tiny_trainer(tmp_path / "run", max_steps=15, **settings).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path / "expected", max_steps=15, **settings).train()
    assert_same_end(tmp_path / "run", tmp_path / "expected")


OTHER_VALUES = {
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "load_best_model_at_end": True,
    **dict.fromkeys(("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"), 0.5),
    **dict.fromkeys(("min_learning_rate", "momentum", "weight_decay"), 1e-4),
}


@pytest.mark.parametrize(
    "name", [field.name for field in fields(TrainingArguments) if field.name not in MAY_CHANGE]
)
def test_a_changed_setting_is_refused_by_its_name(tmp_path, uninterrupted, name):
    shutil.copytree(uninterrupted("windows adamw"), tmp_path / "run")
    before = all_bytes(tmp_path / "run")
    earlier = asdict(trainer_for("windows adamw", tmp_path / "run").args)[name]
    value = OTHER_VALUES.get(name, 7)
    with pytest.raises(
        InputError, match=f"^{name} is {value!r}, but the run to be resumed has {earlier!r}; "
    ):
        tiny_trainer(tmp_path / "run", **{name: value}).train(resume_from_checkpoint=True)
    assert all_bytes(tmp_path / "run") == before


def test_what_may_change_may_change(tmp_path, uninterrupted):
    with pytest.raises(StoppedError):
        trainer_for("windows adamw", tmp_path / "first", [StopAt("on_step_end", 7, fail)]).train()
    (tmp_path / "first").rename(tmp_path / "run")
    tiny_trainer(tmp_path / "run", save_steps=3, save_total_limit=2, num_train_epochs=7.0).train(
        resume_from_checkpoint=True
    )
    assert_same_end(tmp_path / "run", uninterrupted("windows adamw"))
    assert saved_steps(tmp_path / "run") == [9, 10]


@pytest.mark.parametrize(
    ("dtype", "width", "message"),
    [("float32", 12, "holds another model"), ("float64", 8, "has type float32")],
)
def test_another_model_is_refused(tmp_path, uninterrupted, dtype, width, message):
    shutil.copytree(uninterrupted("windows adamw"), tmp_path / "run")
    before = all_bytes(tmp_path / "run")
    trainer = tiny_trainer(tmp_path / "run")
    trainer = Trainer(tiny_model(dtype, width=width), trainer.args, windows(), windows(), [])
    initial = trainer.model.flat.values.copy()
    with pytest.raises(InputError, match=message):
        trainer.train(resume_from_checkpoint=True)
    np.testing.assert_array_equal(trainer.model.flat.values, initial)
    assert all_bytes(tmp_path / "run") == before


def test_a_run_that_goes_on_has_no_model_from_before(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=4).train()
    with pytest.raises(StoppedError):
        tiny_trainer(tmp_path / "run", callbacks=[StopAt("on_step_end", 6, fail)], max_steps=8).train(
            resume_from_checkpoint=True
        )
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_path_to_resume_from_is_not_taken_for_true(tmp_path):
    with pytest.raises(InputError, match="expected True or False"):
        tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_files_that_only_look_like_left_overs_stay(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".song.mp3.part").write_text("mine")
    tiny_trainer(tmp_path / "run", max_steps=1).train()
    assert (tmp_path / "run" / ".song.mp3.part").read_text() == "mine"


def test_the_best_model_needs_validation_data(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), load_best_model_at_end=True)
    with pytest.raises(InputError, match="load_best_model_at_end needs an eval_dataset"):
        Trainer(tiny_model(), arguments, windows())
