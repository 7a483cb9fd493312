"""The trainer: its arguments, what it writes and when, its callbacks, and which checkpoints it keeps."""

import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import fields
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from common.tiny_runs import (
    LENGTH,
    VOCABULARY,
    assert_same_end,
    metrics,
    names,
    saved_steps,
    sequences,
    tiny_model,
    tiny_trainer,
    windows,
)

from minitransformer.data.datasets import TokenWindows
from minitransformer.data.tokenizer import character_tokenizer
from minitransformer.dispatch import inference
from minitransformer.errors import DivergedError, InputError
from minitransformer.evaluation import scores
from minitransformer.generation.sampling import generate
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training import Callback, EarlyStopping, KeepBest, Samples, Trainer, TrainingArguments

OURS_ALONE = {"min_learning_rate", "momentum", "overwrite_output_dir"}  # the last was theirs until version 5
OTHER_DEFAULTS = {"output_dir", "disable_tqdm", "learning_rate", "optim", "eval_steps"}


# --- names and numbers


def test_the_arguments_are_those_of_transformers(transformers):
    theirs = {field.name: field.default for field in fields(transformers.TrainingArguments)}
    ours = {field.name: field.default for field in fields(TrainingArguments)}
    assert ours.keys() - theirs.keys() == OURS_ALONE
    differing = {name for name in ours.keys() - OURS_ALONE if ours[name] != theirs[name]}
    assert differing == OTHER_DEFAULTS


@pytest.mark.parametrize(
    ("rows", "accumulated", "epochs", "steps"),
    [(8, 1, 3.0, 21), (8, 2, 3.0, 12), (16, 1, 3.0, 12), (50, 1, 1.0, 1), (8, 1, 0.5, 4), (100, 1, 2.5, 3)],
)
def test_epochs_make_as_many_steps_as_in_transformers(rows, accumulated, epochs, steps):
    """Of 50 examples: their ceil(epochs · ceil(ceil(50 / rows) / accumulated))."""
    arguments = TrainingArguments(
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulated, num_train_epochs=epochs
    )
    assert arguments.steps_for(sequences(50)) == steps
    assert steps == math.ceil(epochs * math.ceil(math.ceil(50 / rows) / accumulated))


def test_max_steps_go_before_epochs():
    assert TrainingArguments(max_steps=7, num_train_epochs=100.0).steps_for(sequences()) == 7
    assert TrainingArguments(max_steps=0).steps_for(sequences()) == 0


def test_an_epoch_of_windows_is_as_many_tokens_as_there_are():
    arguments = TrainingArguments(per_device_train_batch_size=4, num_train_epochs=2.0)
    assert arguments.steps_for(windows(4 * LENGTH * 5 + 1)) == 10


def test_an_epoch_takes_every_example_once(tmp_path):
    dataset, taken = sequences(50), []
    collate = dataset.collate
    dataset.collate = lambda places: (taken.extend(places), collate(places))[1]
    arguments = TrainingArguments(
        str(tmp_path / "run"),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2.0,
    )
    Trainer(tiny_model(), arguments, dataset, callbacks=[]).train()
    assert sorted(taken[:50]) == sorted(taken[50:]) == list(range(50))
    assert taken[:50] != taken[50:]


@pytest.mark.parametrize("dataset", [windows, sequences])
def test_accumulating_four_times_eight_trains_as_thirty_two(tmp_path, dataset):
    values, drawn = {}, {}
    for rows, accumulated in ((8, 4), (32, 1)):
        data = dataset()
        trainer = tiny_trainer(
            tmp_path / str(rows),
            data,
            dtype="float64",
            dropout=0.0,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=accumulated,
        )
        trainer.eval_dataset, drawn[rows] = None, []
        collate, seen = data.collate, drawn[rows]
        data.collate = lambda places, collate=collate, seen=seen: (seen.extend(places), collate(places))[1]
        trainer.train()
        values[rows] = trainer.model.flat.values
    assert drawn[8] == drawn[32]
    assert len(drawn[8]) > 8 * 10
    np.testing.assert_allclose(values[8], values[32], rtol=0, atol=1e-12)


# --- train, evaluate, predict


def test_the_output_folder(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", warmup_steps=2)
    trainer.settings = {"recipe": "tiny"}
    trainer.train()
    assert names(tmp_path / "run") == [
        *("checkpoint-10", "checkpoint-4", "checkpoint-8"),
        *("config.json", "metrics.jsonl", "model.safetensors"),
    ]
    saved = ["config.json", "model.safetensors", "optimizer.safetensors", "trainer_state.json"]
    assert names(tmp_path / "run" / "checkpoint-8") == saved
    for folder, step in (("run", 10), ("run/checkpoint-10", 10), ("run/checkpoint-4", 4)):
        ours = json.loads((tmp_path / folder / "config.json").read_text())["minitransformer"]
        assert (ours["step"], ours["recipe"]) == (step, "tiny")
    for folder in ("run", "run/checkpoint-10"):
        np.testing.assert_array_equal(load_model(tmp_path / folder).flat.values, trainer.model.flat.values)


def test_the_metrics(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", max_steps=11, logging_steps=2, eval_steps=3, warmup_steps=2)
    losses = []
    trainer.callbacks.append(OnStep(lambda trainer, result: losses.append(result.loss)))
    trainer.train()
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 2, 3, 4, 6, 8, 9, 10, 11]
    assert [line["step"] for line in lines if line["val_loss"] is not None] == [0, 3, 6, 9, 11]
    assert lines[0] == {
        **{"step": 0, "train_loss": None, "val_loss": lines[0]["val_loss"]},
        **{"learning_rate": None, "gradient_norm": None},
    }
    for before, line in pairwise(lines):
        mean = np.mean(losses[before["step"] : line["step"]])
        assert line["train_loss"] == pytest.approx(mean, rel=1e-12)
        assert line["learning_rate"] == trainer.args.learning_rate_at(line["step"] - 1, 11)
        assert line["gradient_norm"] > 0
    written = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert written == trainer.history
    assert all(line["tokens_per_second"] > 0 for line in written[1:])


@pytest.mark.parametrize("dataset", [windows, sequences])
def test_evaluate_is_the_mean_over_every_counted_token(tmp_path, dataset):
    data = dataset()
    trainer = tiny_trainer(tmp_path / "run", data, dtype="float64")
    total, count = 0.0, 0
    for place in data.places():
        batch = data.collate([place])
        with inference():
            logits, _ = trainer.model(batch)
        for row, target in zip(logits[0], batch["targets"][0], strict=True):
            if target != -100:
                total += np.log(np.exp(row).sum()) - row[target]
                count += 1
    score = trainer.evaluate()
    assert score["val_loss"] == pytest.approx(total / count, rel=1e-12)
    assert score["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-12)
    other = type(data)(data.tokens[:20], LENGTH) if dataset is windows else sequences(7)
    assert trainer.evaluate(other) != score
    assert names(tmp_path) == []


def test_predict_returns_logits_targets_and_metrics(tmp_path):
    data = sequences()
    trainer = tiny_trainer(tmp_path / "run", data)
    prediction = trainer.predict(data)
    assert prediction.predictions.shape == (50, LENGTH, VOCABULARY)
    assert prediction.metrics == trainer.evaluate(data)
    for place in (0, 17, 49):
        batch = data.collate([place])
        with inference():
            logits, _ = trainer.model(batch)
        length = logits.shape[1]
        np.testing.assert_allclose(prediction.predictions[place, :length], logits[0], rtol=1e-5, atol=1e-6)
        assert prediction.label_ids[place, :length].tolist() == batch["targets"][0].tolist()
        assert (prediction.label_ids[place, length:] == -100).all()


def test_without_an_evaluation_set_there_is_nothing_to_evaluate(tmp_path):
    arguments = TrainingArguments(str(tmp_path / "run"), max_steps=2, logging_steps=1)
    trainer = Trainer(tiny_model(), arguments, windows(), callbacks=[])
    trainer.train()
    assert [line["val_loss"] for line in trainer.history] == [None, None]
    with pytest.raises(InputError, match="the trainer was given no eval_dataset"):
        trainer.evaluate()


def test_every_evaluation_judges_the_same_sample_spread_over_all(tmp_path):
    data, judged = windows(LENGTH * 5000 + 1), []
    collate = data.collate

    def recorded(places):
        judged.append(list(places))
        return collate(places)

    data.collate = recorded
    trainer = tiny_trainer(tmp_path / "run", windows(), max_steps=4, eval_steps=2)
    trainer.eval_dataset = data
    trainer.train()
    third = len(judged) // 3
    assert judged[:third] == judged[third : 2 * third] == judged[2 * third :]
    sample = np.array([*chain(*judged[:third])])
    assert len(sample) == scores.SAMPLED_PLACES
    assert (sample[0], sample[-1]) == (0, LENGTH * 4999)
    assert np.diff(sample).min() >= 0.9 * np.diff(sample).mean()
    assert trainer.history[-1]["val_loss"] == pytest.approx(
        scores.mean_loss(trainer.model, data, sample.tolist()), rel=1e-12
    )
    assert trainer.history[-1]["val_loss"] != trainer.evaluate()["val_loss"]


def test_the_same_seed_is_the_same_run_and_another_is_another(tmp_path):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        tiny_trainer(tmp_path / name, seed=seed).train()
    assert_same_end(tmp_path / "one", tmp_path / "two")
    assert metrics(tmp_path / "one") != metrics(tmp_path / "three")


# --- callbacks


class OnStep(Callback):
    def __init__(self, action):
        self.action = action

    def on_step_end(self, trainer, result):
        self.action(trainer, result)


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


def pretend_losses(monkeypatch, losses):
    """Let the evaluations while training give ``losses``, one after the other."""
    given = iter(losses)
    monkeypatch.setattr(scores, "sampled_loss", lambda model, dataset: next(given))


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


# --- which checkpoints are kept


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


# --- what ends a run


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
    with pytest.raises(InputError, match="holds another run; go on with it by --resume"):
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


def test_training_in_a_thread_of_its_own(tmp_path):
    trainer = tiny_trainer(tmp_path / "run")
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert trainer.step == 10
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_too_little_data_is_said_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="windows of 8 need at least one more"):
        tiny_trainer(tmp_path / "run", TokenWindows(np.arange(8), LENGTH)).train()


# --- more data than memory

LARGE_RUN = """
import sys
from pathlib import Path

from common.tiny_runs import tiny_trainer
from minitransformer.data.datasets import TokenWindows
from minitransformer.data.token_file import open_tokens
from minitransformer.training import Callback


class Held(Callback):
    most = 0

    def look(self, trainer, *_):
        lines = Path("/proc/self/status").read_text().splitlines()
        [held] = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
        self.most = max(self.most, held)

    on_train_begin = on_step_end = on_evaluate = on_train_exit = look


held = Held()
trainer = tiny_trainer(sys.argv[2], TokenWindows(open_tokens(sys.argv[1]), 8), [held], max_steps=5)
trainer.train()
print(held.most, len(trainer.history), trainer.history[-1]["val_loss"])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not say what is held")
def test_ten_gigabytes_of_tokens_take_no_memory(tmp_path):
    """A sparse file of 5 · 10⁹ tokens, with some that are not zero at its end."""
    tokens, last = tmp_path / "tokens.npy", np.arange(100, dtype=np.uint16) % VOCABULARY
    with tokens.open("wb") as file:
        description = {"descr": "<u2", "fortran_order": False, "shape": (5 * 10**9,)}
        np.lib.format.write_array_header_1_0(file, description)
        file.truncate(file.tell() + 10**10)
        file.seek(-last.nbytes, os.SEEK_END)
        file.write(last.tobytes())
    done = subprocess.run(
        [sys.executable, "-c", LARGE_RUN, tokens, tmp_path / "run"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    tokens.unlink()
    assert (done.returncode, done.stderr) == (0, "")
    held, lines, loss = done.stdout.split()
    assert 10**6 < int(held) < 10**9
    assert int(lines) == 6
    assert 0 < float(loss) < math.log(VOCABULARY)
