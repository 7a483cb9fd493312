"""Whatever would stop a run at some step, and can be known before, is said before its first step."""

import json
import signal
from dataclasses import fields

import numpy as np
import pytest
from common.tiny_runs import (
    LENGTH,
    VOCABULARY,
    assert_same_end,
    metrics,
    names,
    sequences,
    tiny_model,
    tiny_trainer,
    windows,
)

from minitransformer.data import Sequences, TokenWindows, datasets
from minitransformer.errors import ChangedSettingError, DivergedError, InputError, Stopped
from minitransformer.models import GPT, GPTConfig
from minitransformer.recipes import load_recipe
from minitransformer.recipes.run import Display, train_recipe
from minitransformer.training import (
    Callback,
    EarlyStopping,
    ProgressBar,
    Trainer,
    TrainingArguments,
    TrainOutput,
)


def examples(**changes):
    """Return 6,000 examples, of which one is ``changes``: its number, and its ids or targets."""
    dataset = sequences(6000)
    number = changes.pop("number")
    ids, targets = list(dataset.ids), list(dataset.targets)
    ids[number] = np.array(changes.get("ids", [1, 2, 3]))
    targets[number] = np.array(changes.get("targets", [2] * len(ids[number])))
    return Sequences(ids, targets)


def tokens(place, value, dtype=np.int64):
    row = np.arange(300).astype(dtype) % VOCABULARY
    row[place] = value
    return row


WRONG = {
    "too long": (
        lambda: examples(number=5215, ids=[0] * 9),
        "example 5215 has 9 tokens; expected at most 8, the model's context_length",
    ),
    "id": (
        lambda: examples(number=4098, ids=[1, 16, 2]),
        r"token 1 of example 4098 is 16; expected 0 to 15 \(the model's vocabulary_size is 16\)$",
    ),
    "negative id": (
        lambda: examples(number=0, ids=[-100, 1], targets=[1, 1]),
        "token 0 of example 0 is -100; expected 0 to 15",
    ),
    "target": (
        lambda: examples(number=5999, targets=[1, -100, -1]),
        "target 2 of example 5999 is -1; expected 0 to 15 .*, or -100 where nothing is to be predicted",
    ),
    "large target": (lambda: examples(number=174, targets=[1, 99, 1]), "target 1 of example 174 is 99; "),
    "no target": (
        lambda: Sequences([[1, 2], [3]], [[-100, -100], [-100]]),
        "there is nothing to predict: every target is -100",
    ),
    "token": (lambda: TokenWindows(tokens(233, 16), 8), "token 233 is 16; expected 0 to 15"),
    "last token": (lambda: TokenWindows(tokens(-1, 255, np.uint8), 8), "token 299 is 255; expected"),
    "negative token": (lambda: TokenWindows(tokens(0, -1, np.int8), 8), "token 0 is -1; expected"),
    "long windows": (
        lambda: TokenWindows(tokens(0, 0), 9),
        "its windows have 9 tokens; the model's context_length is 8",
    ),
}


@pytest.mark.parametrize("part", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_the_model_is_found_before_anything_is_done(tmp_path, case, part):
    dataset, message = WRONG[case]
    trainer = tiny_trainer(tmp_path / "run")
    setattr(trainer, part, dataset())
    with pytest.raises(InputError, match=f"^{part}: {message}"):
        trainer.train()
    assert names(tmp_path) == []
    with pytest.raises(InputError, match=message):
        trainer.evaluate(dataset())
    with pytest.raises(InputError, match=message):
        trainer.predict(dataset())


def test_all_that_fits_passes():
    datasets_that_fit = (
        Sequences([[0, 15], [3] * 8], [[-100, 15], [0] * 8]),
        TokenWindows(np.array([0, 15, 3]), 8),
        TokenWindows(np.array([0, 15], np.uint8), 1),
        TokenWindows([0, 15, 3], 2),
        windows(),
        sequences(),
    )
    for dataset in datasets_that_fit:
        dataset.check(VOCABULARY, LENGTH)


@pytest.mark.parametrize("many", [False, True])
def test_many_tokens_of_a_file_are_read_in_blocks_the_first_and_the_last_among_them(monkeypatch, many):
    monkeypatch.setattr(datasets, "BLOCK", 16)
    monkeypatch.setattr(datasets, "MOST_READ", 64)
    kind, found = np.memmap if many else np.ndarray, []
    for place in range(301):
        try:
            row = np.append(tokens(0, 0), 0) + 99 * (np.arange(301) == place)
            TokenWindows(row.view(kind), 8).check(99, 8)
        except InputError as error:
            found.append(place)
            assert f"token {place} is " in str(error)
    assert len(found) == (64 if many else 301)
    assert (found[:16], found[-16:]) == ([*range(16)], [*range(285, 301)])


def test_tokens_whose_type_has_no_room_for_others_are_not_read():
    class Unreadable(np.ndarray):
        def __getitem__(self, index):
            raise AssertionError("read")

    row = np.zeros(100, np.uint8).view(Unreadable)
    TokenWindows(row, 8).check(256, 8)
    with pytest.raises(AssertionError, match="read"):
        TokenWindows(row, 8).check(255, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenWindows(np.array([0.0, 1.0]), 1), r"float64 of shape \(2,\); expected one row of int"),
        (lambda: TokenWindows(np.zeros((2, 2), int), 1), r"int64 of shape \(2, 2\); expected one row"),
        (lambda: Sequences([[0.5]], [[1]]), r"an example is float64 of shape \(1,\)"),
        (lambda: Sequences([[1]], [[np.nan]]), r"an example is float64 of shape \(1,\)"),
        (lambda: Sequences([[[1]]], [[[1]]]), r"an example is int64 of shape \(1, 1\)"),
    ],
)
def test_what_is_no_row_of_integers(make, message):
    with pytest.raises(InputError, match=message):
        make()


class Own:
    """A dataset of the user's own, which has only what it must have."""

    def __init__(self, dataset, count=None):
        self.dataset, self.count = dataset, count
        self.training_places, self.collate = dataset.training_places, dataset.collate

    def batches_per_epoch(self, rows):
        return self.dataset.batches_per_epoch(rows) if self.count is None else 0

    def places(self):
        places = self.dataset.places()
        return places if self.count is None else places[: self.count]


def test_a_dataset_of_ones_own_needs_no_more_than_before(tmp_path):
    settings = {"lr_scheduler_type": "constant"}
    tiny_trainer(tmp_path / "run", Own(windows()), max_steps=4, **settings).train()
    tiny_trainer(tmp_path / "run", Own(windows()), **settings).train(resume_from_checkpoint=True)
    tiny_trainer(tmp_path / "expected", **settings).train()
    assert_same_end(tmp_path / "run", tmp_path / "expected")
    going = tiny_trainer(tmp_path / "run", Own(windows(300)), max_steps=12, **settings)
    with pytest.raises(ChangedSettingError, match=r"is Own of 38 examples, but .* has Own of 25 e"):
        going.train(resume_from_checkpoint=True)


def test_empty_datasets(tmp_path):
    trainer = tiny_trainer(tmp_path / "run", Own(windows(), count=0))
    with pytest.raises(InputError, match="train_dataset has no examples"):
        trainer.train()
    trainer.train_dataset = windows()
    with pytest.raises(InputError, match="eval_dataset: there are no examples"):
        trainer.train()
    assert names(tmp_path) == []


# --- the data of a run that goes on


@pytest.mark.parametrize("part", ["train_dataset", "eval_dataset"])
@pytest.mark.parametrize(
    ("dataset", "other"),
    [
        (windows, lambda: TokenWindows(windows().tokens[::-1], LENGTH)),
        (windows, lambda: windows(199)),
        (windows, lambda: TokenWindows(windows().tokens, LENGTH - 1)),
        (windows, sequences),
        (sequences, lambda: sequences(49)),
        (sequences, lambda: Sequences(sequences().ids, [row * 0 for row in sequences().targets])),
        (sequences, lambda: Sequences([row * 0 for row in sequences().ids], sequences().targets)),
    ],
)
def test_another_data_set_is_refused(tmp_path, dataset, other, part):
    tiny_trainer(tmp_path / "run", dataset(), max_steps=4).train()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    trainer = tiny_trainer(tmp_path / "run", dataset())
    setattr(trainer, part, other())
    with pytest.raises(
        ChangedSettingError, match=f"^{part} is .*, sha256 .*, but the run to be resumed has .*, sha256 "
    ):
        trainer.train(resume_from_checkpoint=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_the_validation_data_cannot_come_or_go(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=4).train()
    trainer = tiny_trainer(tmp_path / "run")
    trainer.eval_dataset = None
    with pytest.raises(ChangedSettingError, match=r"eval_dataset is None, but the run .* has 200 t"):
        trainer.train(resume_from_checkpoint=True)


def test_the_same_tokens_in_another_type_or_place_are_the_same_data(tmp_path):
    row = windows().tokens
    np.save(tmp_path / "tokens.npy", row.astype(np.uint8))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    prints = {TokenWindows(each, LENGTH).fingerprint() for each in (row, row.astype(np.int16), mapped)}
    assert len(prints) == 1


def test_of_many_tokens_some_blocks_are_hashed(monkeypatch):
    monkeypatch.setattr(datasets, "BLOCK", 16)
    monkeypatch.setattr(datasets, "MOST_READ", 64)
    row = tokens(0, 0)
    prints = [TokenWindows(row ^ (np.arange(300) == place), 8).fingerprint() for place in range(300)]
    assert len(set(prints)) == 64 + 1
    assert prints[0] != prints[50] == prints[20] != prints[299]


def test_a_checkpoint_of_an_earlier_version_goes_on_without_a_record(tmp_path):
    tiny_trainer(tmp_path / "run", max_steps=4).train()
    path = tmp_path / "run" / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    assert set(state.pop("datasets")) == {"train_dataset", "eval_dataset"}
    for name in ("sha256", "datasets"):
        state.pop(name, None)
    for name in ("overwrite_output_dir", "disable_tqdm"):
        del state["args"][name]
    path.write_text(json.dumps(state))
    assert tiny_trainer(tmp_path / "run").train(resume_from_checkpoint=True).global_step == 10


# --- a start that failed


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


# --- overwriting


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
        tiny_trainer(tmp_path / "run", TokenWindows(tokens(5, 99), 8), overwrite_output_dir=True).train()
    assert names(tmp_path / "run") == before


# --- what train returns, and the bar


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
