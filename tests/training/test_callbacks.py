"""Callbacks: when they are called, and those that the trainer comes with."""

import json

import numpy as np
import pytest
from common.tiny_runs import metrics, pretend_losses, tiny_trainer

from minitransformer.data.tokenizer import character_tokenizer
from minitransformer.generation.sampling import generate
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training import Callback, EarlyStopping, KeepBest, Samples


class OnEvaluate(Callback):
    def __init__(self, action):
        self.action = action

    def on_evaluate(self, trainer, line):
        self.action(trainer, line)


class Recorder(Callback):
    """Writes down every call, under its own name."""

    def __init__(self, name, calls):
        for moment in dir(Callback):
            if moment.startswith("on_"):
                setattr(self, moment, self.recording(name, moment, calls))

    @staticmethod
    def recording(name, moment, calls):
        return lambda trainer, *arguments: calls.append((name, moment, trainer.step))


def test_callbacks_are_called_in_order(tmp_path):
    calls = []
    trainer = tiny_trainer(
        tmp_path / "run",
        callbacks=[Recorder("first", calls), Recorder("second", calls)],
        **{"max_steps": 3, "logging_steps": 2, "eval_steps": 3, "save_steps": 2},
    )
    trainer.train()
    assert calls[::2] == [("first", moment, step) for _, moment, step in calls[1::2]]
    assert [(moment, step) for name, moment, step in calls if name == "second"] == [
        ("on_train_begin", 0),
        ("on_log", 0),
        ("on_evaluate", 0),
        ("on_step_end", 1),
        ("on_step_end", 2),
        ("on_log", 2),
        ("on_save", 2),
        ("on_step_end", 3),
        ("on_log", 3),
        ("on_evaluate", 3),
        ("on_save", 3),
        ("on_train_end", 3),
        ("on_save", 3),
        ("on_train_exit", 3),
    ]


def test_what_a_callback_adds_to_a_save_is_saved(tmp_path):
    class Note(Callback):
        def on_save(self, trainer, folder):
            (folder / "note.txt").write_text(f"step {trainer.step}")

    tiny_trainer(tmp_path / "run", callbacks=[Note(), KeepBest()]).train()
    assert (tmp_path / "run" / "note.txt").read_text() == "step 10"
    assert (tmp_path / "run" / "checkpoint-4" / "note.txt").read_text() == "step 4"
    assert (tmp_path / "run" / "best" / "note.txt").exists()


@pytest.mark.parametrize(
    ("patience", "threshold", "losses", "last"),
    [
        (1, 0.0, [5, 4, 4], 2),
        (1, 0.0, [5, 4, 3, 2, 3], 4),
        (2, 0.0, [5, 6, 4, 5, 4.5], 4),
        (2, 0.5, [5, 4.6, 4.4, 4.3, 4.0], 4),
        (3, 0.0, [5, 6, 7, 4, 5, 6, 7], 6),
    ],
)
def test_early_stopping(tmp_path, monkeypatch, patience, threshold, losses, last):
    pretend_losses(monkeypatch, [*losses, *[0.0] * 20])
    trainer = tiny_trainer(
        tmp_path / "run", callbacks=[EarlyStopping(patience, threshold)], eval_steps=1, max_steps=20
    )
    assert trainer.train().global_step == last
    assert (tmp_path / "run" / f"checkpoint-{last}").is_dir()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["minitransformer"]["step"] == last


def test_a_run_that_was_stopped_early_stays_stopped_when_resumed(tmp_path, monkeypatch):
    pretend_losses(monkeypatch, [5, 4, 4, 3])
    settings = {"eval_steps": 1, "max_steps": 20, "callbacks": [EarlyStopping()]}
    tiny_trainer(tmp_path / "run", **settings).train()
    before = metrics(tmp_path / "run")
    again = tiny_trainer(tmp_path / "run", **settings)
    assert again.train(resume_from_checkpoint=True).global_step == 2
    assert metrics(tmp_path / "run") == before


@pytest.mark.parametrize("load", [False, True])
def test_the_best_model_is_kept_and_loaded_at_the_end(tmp_path, monkeypatch, load):
    pretend_losses(monkeypatch, [5, 3, 4, 2, 2.5, 9])
    values = []
    trainer = tiny_trainer(
        tmp_path / "run",
        callbacks=[
            OnEvaluate(lambda trainer, line: values.append(trainer.model.flat.values.copy())),
            *([] if load else [KeepBest()]),
        ],
        **{"eval_steps": 2, "load_best_model_at_end": load},
    )
    trainer.train()
    best, last = values[3], values[5]
    assert not np.array_equal(best, last)
    np.testing.assert_array_equal(load_model(tmp_path / "run" / "best").flat.values, best)
    for found in (trainer.model, load_model(tmp_path / "run")):
        np.testing.assert_array_equal(found.flat.values, best if load else last)
    np.testing.assert_array_equal(load_model(tmp_path / "run" / "checkpoint-10").flat.values, last)


def test_samples_are_written_after_every_evaluation_and_are_the_same_each_time(tmp_path):
    tokenizer, prompt = character_tokenizer("abcdefghijklmnop"), [1, 2]
    written = {"one": [], "two": []}
    for name, texts in written.items():
        samples = Samples(tokenizer, prompt, texts.append, max_new_tokens=12, temperature=0.7)
        trainer = tiny_trainer(tmp_path / name, callbacks=[samples], eval_steps=5)
        trainer.train()
    assert written["one"] == written["two"]
    assert len(written["one"]) == 3
    ids = generate(trainer.model, prompt, 12, temperature=0.7, seed=10)
    assert written["one"][-1] == "bc" + "".join("abcdefghijklmnop"[index] for index in ids)
