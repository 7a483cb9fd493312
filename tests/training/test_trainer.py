"""The trainer: what it writes and when, how it evaluates, and that data need not fit in memory."""

import json
import math
import os
import subprocess
import sys
import threading
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from common.tiny_runs import (
    LENGTH,
    VOCABULARY,
    OnStep,
    assert_same_end,
    metrics,
    names,
    sequences,
    tiny_model,
    tiny_trainer,
    windows,
)

from minitransformer.data.datasets import TokenWindows
from minitransformer.dispatch import inference
from minitransformer.errors import InputError
from minitransformer.evaluation import scores
from minitransformer.pretrained.model_folder import load_model
from minitransformer.training import Trainer, TrainingArguments


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


def test_every_evaluation_takes_the_same_sample_spread_over_all(tmp_path):
    data, evaluated = windows(LENGTH * 5000 + 1), []
    collate = data.collate

    def recorded(places):
        evaluated.append(list(places))
        return collate(places)

    data.collate = recorded
    trainer = tiny_trainer(tmp_path / "run", windows(), max_steps=4, eval_steps=2)
    trainer.eval_dataset = data
    trainer.train()
    third = len(evaluated) // 3
    assert evaluated[:third] == evaluated[third : 2 * third] == evaluated[2 * third :]
    sample = np.array([*chain(*evaluated[:third])])
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
