"""What a model can be called with: batches, ids alone, Hugging Face's names; and what is refused."""

import re
from collections import UserDict

import numpy as np
import pytest

from minitransformer.errors import InputError
from minitransformer.models import GPT, GPTConfig

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    return GPT(GPTConfig(vocabulary_size=11, context_length=8, layers=2, heads=2, width=8)).build()


IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 0]])
TARGETS = np.array([[2, 3, 4, 5], [6, 7, -100, -100]])


@pytest.mark.parametrize(
    "form",
    [
        lambda ids: ids,
        lambda ids: ids.tolist(),
        lambda ids: tuple(map(tuple, ids.tolist())),
        lambda ids: ids.astype(np.uint8),
        lambda ids: {"ids": ids},
        lambda ids: {"input_ids": ids},
        lambda ids: {"input_ids": ids.tolist()},
        lambda ids: UserDict(input_ids=ids, attention_mask=np.ones_like(ids)),
        lambda ids: {"ids": ids, "lengths": [4, 4]},
    ],
    ids=["array", "lists", "tuples", "uint8", "ids", "input_ids", "lists by name", "attention", "lengths"],
)
def test_ids_give_logits(model, form):
    expected, _ = model({"ids": IDS})
    assert expected.shape == (2, 4, 11)
    np.testing.assert_array_equal(model(form(IDS))[0], expected)


def test_tensors_of_pytorch_give_logits(model, torch):
    np.testing.assert_array_equal(model(torch.from_numpy(IDS))[0], model(IDS)[0])


def test_the_pullback_is_the_same_whatever_names_the_batch_has(model):
    gradients = []
    for batch in (IDS, {"input_ids": IDS}):
        model.zero_gradients()
        logits, backward = model(batch)
        backward(np.ones_like(logits))
        gradients.append(model.flat.gradients.copy())
    np.testing.assert_array_equal(*gradients)
    assert np.count_nonzero(gradients[0])


@pytest.mark.parametrize("dtype", [np.int64, bool])
def test_an_attention_mask_of_padding_on_the_right_is_lengths(model, dtype):
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], dtype)
    expected = model.loss({"ids": IDS, "targets": TARGETS, "lengths": np.array([4, 2])})[0]["tokens"]
    batch = {"input_ids": IDS, "targets": TARGETS, "attention_mask": mask}
    assert model.loss(batch)[0]["tokens"] == expected
    assert set(batch) == {"input_ids", "targets", "attention_mask"}, "what was given was changed"


WRONG = [
    ([1, 2, 3], "ids have shape (3,); expected (B, T), a row for each sequence; give [ids] for one sequence"),
    (np.zeros((1, 2, 3), int), "ids have shape (1, 2, 3); expected (B, T)"),
    (3, "ids have shape (); expected (B, T)"),
    ([[1, 2], [3]], "the rows of ids have unequal lengths; pad them on the right and give their lengths"),
    (IDS / 1, "ids have type float64; expected integers"),
    (IDS > 1, "ids have type bool; expected integers"),
    ("def ", "expected integers"),
    ({"ids": [[1, 11]]}, "id 11 at index (0, 1) is out of range; expected 0 to 10"),
    ({"ids": [[1, -1]]}, "id -1 at index (0, 1) is out of range"),
    (np.zeros((1, 9), int), "a sequence of 9 tokens is longer than the model's 8 positions"),
    ({}, "the batch has no ids; there are nothing"),
    ({"targets": IDS}, "the batch has no ids; there are targets"),
    ({"input_ids": IDS, "labels": IDS}, "the batch has labels, which Hugging Face's models shift by one"),
    ({"ids": IDS, "target": IDS}, "there is nothing called 'target' in a batch; did you mean 'targets'?"),
    ({"ids": IDS, "position_ids": IDS}, "there is nothing called 'position_ids' in a batch"),
    ({"ids": IDS, "targets": IDS[:1]}, "targets have shape (1, 4) beside ids (2, 4); expected (2, 4)"),
    ({"ids": IDS, "lengths": [4]}, "lengths have shape (1,) beside ids (2, 4); expected (2,)"),
    ({"ids": IDS, "lengths": [4, 5]}, "a row's length is 5; expected 0 to 4"),
    ({"ids": IDS, "lengths": [-1, 2]}, "a row's length is -1; expected 0 to 4"),
    ({"ids": IDS, "lengths": [4.0, 2.0]}, "lengths have type float64; expected integers"),
    ({"ids": IDS, "attention_mask": [[0, 1, 1, 1], [1, 1, 1, 1]]}, "attention_mask hides tokens that others"),
    ({"ids": IDS, "attention_mask": [[1, 0, 1, 1], [1, 1, 1, 1]]}, "padding can be on the right only"),
    ({"ids": IDS, "attention_mask": [[1, 1]]}, "attention_mask has shape (1, 2) beside ids (2, 4)"),
    ({"ids": IDS, "attention_mask": IDS > 0, "lengths": [4, 3]}, "give one of them"),
]


@pytest.mark.parametrize(("batch", "message"), WRONG, ids=[str(row[1])[:40] for row in WRONG])
def test_what_is_no_batch_is_refused_with_a_way_to_mend_it(model, batch, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        model(batch)


def test_targets_that_are_missing_or_in_the_wrong_place(model):
    for arguments in ([IDS], [IDS, TARGETS]):
        with pytest.raises(
            InputError, match=r"the batch has no targets; give .* for each token the one that"
        ):
            model.loss(*arguments)
    with pytest.raises(InputError, match="here targets are given"):
        model.loss({"ids": IDS, "targets": IDS, "labels": IDS})
    with pytest.raises(TypeError, match="a model's targets are part of its batch"):
        model(IDS, TARGETS)
