"""Training arguments: they are those of transformers, and how many steps they make."""

import math
from dataclasses import fields

import numpy as np
import pytest
from common.tiny_runs import LENGTH, sequences, tiny_model, tiny_trainer, windows

from minitransformer.training import Trainer, TrainingArguments

OURS_ALONE = {"min_learning_rate", "momentum", "overwrite_output_dir"}  # the last was theirs until version 5


OTHER_DEFAULTS = {"output_dir", "disable_tqdm", "learning_rate", "optim", "eval_steps"}


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
