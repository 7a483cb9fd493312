"""Whatever would stop a run at some step, and can be known before, is said before its first step."""

import json

import numpy as np
import pytest
from common.tiny_runs import LENGTH, VOCABULARY, assert_same_end, names, sequences, tiny_trainer, windows

from minitransformer.data import Sequences, TokenWindows, datasets
from minitransformer.errors import ChangedSettingError, InputError


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
