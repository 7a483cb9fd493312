"""Datasets: each example where it should be, as often as it should, and padded without a trace."""

import math
import tracemalloc

import numpy as np
import pytest

from minitransformer.data import Sequences, TokenWindows
from minitransformer.data.datasets import POOL
from minitransformer.errors import InputError
from minitransformer.models import GPT, GPTConfig

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 9, 10, 13])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_token_but_the_first_is_predicted_once(count, rows):
    tokens = RANDOM.permutation(100)[:count]
    windows = TokenWindows(tokens, 4)
    places, predicted = windows.places(), []
    assert len(places) == math.ceil((count - 1) / 4)
    for first in range(0, len(places), rows):
        batch = windows.collate(places[first : first + rows])
        real = batch["targets"] != -100
        for row, (ids, targets) in enumerate(zip(batch["ids"], batch["targets"], strict=True)):
            start = len(predicted)
            length = real[row].sum()
            assert length == batch.get("lengths", np.full(rows, batch["ids"].shape[1]))[row]
            assert targets[:length].tolist() == tokens[start + 1 : start + 1 + length].tolist()
            assert ids[:length].tolist() == tokens[start : start + length].tolist()
            assert (targets[length:] == -100).all()
            predicted += targets[:length].tolist()
    assert predicted == tokens[1:].tolist()


def test_the_last_window_is_shorter():
    batch = TokenWindows(np.arange(10, 17), 4).collate([0, 4])
    assert batch["targets"].tolist() == [[11, 12, 13, 14], [15, 16, -100, -100]]
    assert batch["ids"][0].tolist() == [10, 11, 12, 13]
    assert batch["ids"][1, :2].tolist() == [14, 15]
    assert batch["lengths"].tolist() == [4, 2]


def test_windows_of_one_length_need_no_lengths():
    batch = TokenWindows(np.arange(10, dtype=np.uint8), 4).collate(np.array([0, 5]))
    assert batch["ids"].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert sorted(batch) == ["ids", "targets"]
    assert batch["ids"].dtype == batch["targets"].dtype == np.int64


def test_training_windows_are_uniform_and_reach_the_last_token():
    windows = TokenWindows(np.arange(15), 4)
    places = np.concatenate([windows.training_places(number, 50, seed=1) for number in range(220)])
    counts = np.bincount(places)
    assert len(counts) == 11
    assert windows.collate(places)["targets"].max() == 14
    chi_squared = np.sum((counts - 1000) ** 2) / 1000
    assert 1 < chi_squared < 25  # 10 degrees of freedom: 99 % lie between 2.2 and 25.2


def test_training_windows_depend_on_number_rows_and_seed_alone():
    tokens = np.arange(10_000)
    windows = TokenWindows(tokens, 4)
    places = {
        (number, seed): windows.training_places(number, 8, seed) for number in (0, 1, 7) for seed in (0, 1)
    }
    assert len({tuple(drawn) for drawn in places.values()}) == 6
    for (number, seed), drawn in reversed(places.items()):
        assert drawn.shape == (8,)
        np.testing.assert_array_equal(TokenWindows(tokens, 4).training_places(number, 8, seed), drawn)


def test_an_epoch_of_windows_has_as_many_tokens_as_there_are():
    assert TokenWindows(np.arange(1 + 3 * 8 * 5), 8).batches_per_epoch(3) == 5
    assert TokenWindows(np.arange(3 * 8 * 5), 8).batches_per_epoch(3) == 4
    assert TokenWindows(np.arange(5), 8).batches_per_epoch(3) == 1


def test_too_few_tokens():
    for count in (0, 1):
        with pytest.raises(InputError, match=f"there are {count} tokens; expected at least 2"):
            TokenWindows(np.arange(count), 4)
    with pytest.raises(InputError, match="there are 4 tokens; windows of 4 need at least one more"):
        TokenWindows(np.arange(4), 4).training_places(0, 1, 0)
    assert TokenWindows(np.arange(5), 4).training_places(0, 2, 0).tolist() == [0, 0]


def test_of_a_file_only_what_is_needed_is_read(tmp_path):
    """A row of 256 MiB, nearly all of it a hole: a copy of it, or of a part worth mention, would show."""
    path = tmp_path / "tokens.npy"
    count = 2**27
    tokens = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(count,))
    tokens[-3:] = 7, 8, 9
    windows = TokenWindows(np.load(path, mmap_mode="r"), 64)
    tracemalloc.start()
    try:
        trained = windows.collate(windows.training_places(3, 12, seed=0))
        evaluated = windows.collate(windows.places()[-2:])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert trained["ids"].shape == (12, 64)
    assert evaluated["targets"][1, evaluated["lengths"][1] - 1] == 9
    assert peak < 2**20


def examples(lengths):
    """Return ids and targets of these lengths, the first half of the targets not predicted."""
    ids = [RANDOM.integers(0, 11, length) for length in lengths]
    targets = [np.where(np.arange(len(row)) < len(row) // 2, -100, row) for row in ids]
    return ids, targets


def epoch(dataset, number, rows, seed):
    batches = dataset.batches_per_epoch(rows)
    return [dataset.training_places(number * batches + index, rows, seed) for index in range(batches)]


@pytest.mark.parametrize("rows", [1, 3, 7, 200])
def test_each_example_comes_once_an_epoch(rows):
    dataset = Sequences(*examples(RANDOM.integers(1, 9, 100)))
    orders = []
    for number in range(4):
        batches = epoch(dataset, number, rows, seed=0)
        assert {len(batch) for batch in batches} <= {rows, 100 % rows}
        orders.append(tuple(np.concatenate(batches).tolist()))
        assert sorted(orders[-1]) == list(dataset.places()) == list(range(100))
    assert len(set(orders)) == 4


def test_examples_meet_in_other_batches_in_another_epoch():
    dataset = Sequences(*examples([5] * 64))
    first, second = (
        {frozenset(batch.tolist()) for batch in epoch(dataset, number, 8, 0)} for number in (0, 1)
    )
    assert not first & second


def test_training_places_depend_on_number_rows_and_seed_alone():
    contents = examples(RANDOM.integers(1, 9, 50))
    dataset = Sequences(*contents)
    asked = [(number, rows, seed) for number in range(12) for rows in (4, 16) for seed in (0, 1)]
    drawn = {case: dataset.training_places(*case).tolist() for case in asked}
    for case in RANDOM.permutation(asked).tolist():
        assert dataset.training_places(*case).tolist() == drawn[tuple(case)]
        assert Sequences(*contents).training_places(*case).tolist() == drawn[tuple(case)]
    assert drawn[0, 4, 0] != drawn[0, 4, 1]


def test_neighbours_of_similar_length_leave_little_padding():
    lengths = RANDOM.integers(1, 100, 2000)
    dataset = Sequences(*examples(lengths))

    def padding(batches):
        return (
            sum(lengths[batch].max() * len(batch) - lengths[batch].sum() for batch in batches) / lengths.sum()
        )

    unsorted = np.split(RANDOM.permutation(2000), 125)
    assert padding(unsorted) > 0.8
    assert padding(epoch(dataset, 0, 16, seed=0)) < 0.1


def test_lengths_do_not_come_in_order():
    """A run must not go from short to long: the batches of a pool are shuffled, and so are pools."""
    lengths = np.repeat(np.arange(1, 65), POOL // 8)
    dataset = Sequences(*examples(lengths))
    longest = [lengths[batch].max() for batch in epoch(dataset, 0, 4, seed=0)]
    rising = np.mean(np.diff(longest) >= 0)
    assert 0.25 < rising < 0.75
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.4


def test_padding_is_on_the_right_and_not_counted():
    dataset = Sequences([[1, 2, 3], [4], [5, 6]], [[-100, 3, 4], [5], [-100, 7]])
    batch = dataset.collate([2, 0, 1])
    assert batch["targets"].tolist() == [[-100, 7, -100], [-100, 3, 4], [5, -100, -100]]
    assert batch["lengths"].tolist() == [2, 3, 1]
    assert [ids[:length].tolist() for ids, length in zip(batch["ids"], [2, 3, 1], strict=True)] == [
        [5, 6],
        [1, 2, 3],
        [4],
    ]
    assert GPT.count_targets(batch) == {"tokens": 4}
    assert "lengths" not in dataset.collate([0])
    assert GPT.count_targets(dataset.collate([0])) == {"tokens": 2}


@pytest.mark.parametrize(
    ("ids", "targets", "message"),
    [
        ([], [], "there are 0 rows of ids and 0 of targets"),
        ([[1]], [], "there are 1 rows of ids and 0 of targets; expected as many"),
        ([[1], [2]], [[1]], "there are 2 rows of ids and 1 of targets"),
        ([[1, 2], [1]], [[1, 2], [1, 2]], "a row of ids is empty or not as long as its targets"),
        ([[1], []], [[1], []], "a row of ids is empty"),
    ],
)
def test_examples_that_do_not_fit(ids, targets, message):
    with pytest.raises(InputError, match=message):
        Sequences(ids, targets)


@pytest.mark.parametrize("kind", ["sequences", "windows"])
def test_a_padded_batch_is_its_rows_one_by_one(kind):
    model = GPT(GPTConfig(11, 8, 2, 2, 8)).build(seed=3, dtype="float64")
    model.flat.values[...] = RANDOM.normal(0, 0.3, model.flat.values.shape)
    if kind == "sequences":
        dataset = Sequences(*examples([7, 2, 5, 1, 8]))
    else:
        dataset = TokenWindows(RANDOM.integers(0, 11, 8 + 8 + 3 + 1), 8)
    batch = dataset.collate(list(dataset.places()))
    assert "lengths" in batch
    total, gradient = loss_and_gradient(model, batch)

    rows = [dataset.collate([place]) for place in dataset.places()]
    assert sum(GPT.count_targets(row)["tokens"] for row in rows) == GPT.count_targets(batch)["tokens"]
    totals, gradients = zip(*(loss_and_gradient(model, row) for row in rows), strict=True)
    assert total == pytest.approx(sum(totals), rel=1e-12)
    np.testing.assert_allclose(gradient, sum(gradients), rtol=0, atol=1e-12 * np.abs(gradient).max())


def loss_and_gradient(model, batch):
    model.zero_gradients()
    totals, backward = model.loss(batch)
    backward({"tokens": 1.0})
    return float(totals["tokens"]), model.flat.gradients.copy()
