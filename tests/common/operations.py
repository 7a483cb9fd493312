"""Every operation of ``minitransformer.functional`` in all its variants, and that gradients are added.

``CASES`` is the table: each row is checked by differences, compared with PyTorch, and held against the rules.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest

from minitransformer import functional
from minitransformer.functional import IGNORED, Key, Mask, causal_mask, full_mask


class Case(NamedTuple):
    """An operation, what is special about this call of it, the shapes of its arrays, and its settings."""

    operation: str
    variant: str
    shapes: tuple
    settings: dict[str, Any] = {}  # noqa: RUF012 - nobody writes into it

    @property
    def forward(self):
        return getattr(functional, self.operation)

    @property
    def backward(self):
        return getattr(functional, f"{self.operation}_backward")

    def arrays(self, seed=100):
        """Return random arrays of the shapes, None where there is none."""
        random = np.random.default_rng(seed)
        return [None if shape is None else random.normal(size=shape) for shape in self.shapes]


def integers(shape, limit, seed=0):
    """Return random ids, some of which repeat."""
    return np.random.default_rng(seed).integers(0, limit, shape)


def some_ignored(targets):
    """Return ``targets`` with every other one ignored."""
    targets = targets.copy()
    targets.reshape(-1)[::2] = IGNORED
    return targets


def bias_of_scores(shape, invisible, seed=0):
    """Return an additive bias with a third of its entries ``invisible``."""
    random = np.random.default_rng(seed)
    return np.where(random.random(shape) < 1 / 3, invisible, random.normal(size=shape))


def heads(batch, queries, keys, query_heads, key_heads, width):
    """Return the shapes of q, k and v."""
    of_keys = (batch, keys, key_heads, width)
    return (batch, queries, query_heads, width), of_keys, of_keys


KEY = Key(seed=2**40 + 7, stream=3)
SEES_NOTHING_IN_ROW_1 = np.array([[0.0, 1.0, -1.0], [-np.inf] * 3, [0.0, -1e30, 0.5]])

CASES = [
    Case("linear", "bias", ((2, 3, 4), (4, 5), (5,))),
    Case("linear", "no bias", ((2, 3, 4), (4, 5), None)),
    Case("linear", "square", ((5, 3), (3, 3), (3,))),
    Case("linear", "one vector", ((4,), (4, 3), (3,))),
    Case("linear", "no rows", ((0, 4), (4, 3), (3,))),
    Case("linear", "large", ((4, 9, 30), (30, 40), (40,))),
    Case("softmax", "matrix", ((3, 5),)),
    Case("softmax", "vector", ((5,),)),
    Case("softmax", "one class", ((3, 1),)),
    Case("softmax", "no rows", ((0, 5),)),
    Case("softmax", "large", ((3, 20, 30),)),
    Case("log_softmax", "matrix", ((3, 5),)),
    Case("log_softmax", "vector", ((5,),)),
    Case("log_softmax", "no rows", ((0, 5),)),
    Case("log_softmax", "large", ((3, 20, 30),)),
    Case("layer_norm", "bias", ((2, 3, 5), (5,), (5,))),
    Case("layer_norm", "no bias", ((3, 5), (5,), None)),
    Case("layer_norm", "one vector", ((5,), (5,), (5,))),
    Case("layer_norm", "wide eps", ((3, 5), (5,), (5,)), {"eps": 0.5}),
    Case("layer_norm", "no rows", ((0, 5), (5,), (5,))),
    Case("layer_norm", "large", ((4, 10, 40), (40,), (40,))),
    Case("add_layer_norm", "bias", ((2, 3, 5), (2, 3, 5), (5,), (5,))),
    Case("add_layer_norm", "no bias", ((3, 5), (3, 5), (5,), None)),
    Case("add_layer_norm", "wide eps", ((3, 5), (3, 5), (5,), (5,)), {"eps": 0.5}),
    Case("add_layer_norm", "large", ((4, 10, 40), (4, 10, 40), (40,), (40,))),
    Case("gelu_exact", "matrix", ((4, 5),)),
    Case("gelu_exact", "large", ((4, 5, 90),)),
    Case("gelu_tanh", "matrix", ((4, 5),)),
    Case("gelu_tanh", "large", ((4, 5, 90),)),
    Case("relu", "matrix", ((4, 5),)),
    Case("relu", "large", ((4, 20, 30),)),
    Case("linear_gelu", "exact", ((2, 3, 4), (4, 5), (5,)), {"form": "exact"}),
    Case("linear_gelu", "tanh", ((2, 3, 4), (4, 5), (5,)), {"form": "tanh"}),
    Case("linear_gelu", "no bias", ((3, 4), (4, 5), None), {"form": "exact"}),
    Case("linear_gelu", "large", ((4, 9, 30), (30, 40), (40,)), {"form": "tanh"}),
    Case("dropout", "some", ((3, 8),), {"rate": 0.4, "key": KEY}),
    Case("dropout", "none", ((3, 8),), {"rate": 0.0, "key": KEY}),
    Case("dropout", "no rows", ((0, 8),), {"rate": 0.4, "key": KEY}),
    Case("dropout", "large", ((4, 20, 30),), {"rate": 0.4, "key": KEY}),
    Case("embedding", "ids repeat", ((5, 3),), {"ids": np.array([[0, 2, 2], [4, 0, 0]])}),
    Case("embedding", "unsigned ids", ((5, 3),), {"ids": np.array([3, 3], "uint16")}),
    Case("embedding", "one id", ((5, 3),), {"ids": np.array(2)}),
    Case("embedding", "no ids", ((5, 3),), {"ids": np.zeros((0, 2), int)}),
    Case("embedding", "large", ((60, 30),), {"ids": integers((5, 30), 60)}),
    Case("add_positions", "same in every row", ((2, 3, 4), (6, 4)), {"positions": np.array([1, 2, 4])}),
    Case("add_positions", "repeat", ((2, 3, 4), (6, 4)), {"positions": np.array([[0, 0, 5], [5, 1, 0]])}),
    Case("add_positions", "no rows", ((0, 3, 4), (6, 4)), {"positions": np.arange(3)}),
    Case("add_sinusoids", "same in every row", ((2, 3, 5),), {"positions": np.array([1, 2, 4])}),
    Case(
        "add_sinusoids",
        "of its own in every row",
        ((2, 3, 4),),
        {"positions": np.array([[0, 0, 5], [5, 1, 0]])},
    ),
    Case("add_sinusoids", "large", ((4, 20, 30),), {"positions": np.arange(20)}),
    Case("add_positions", "large", ((4, 20, 30), (20, 30)), {"positions": np.arange(20)}),
    Case("cross_entropy", "plain", ((2, 3, 5),), {"targets": integers((2, 3), 5)}),
    Case("cross_entropy", "one vector", ((5,),), {"targets": np.array(3)}),
    Case("cross_entropy", "smoothed", ((4, 5),), {"targets": integers(4, 5), "label_smoothing": 0.1}),
    Case(
        "cross_entropy",
        "some ignored, smoothed",
        ((2, 3, 5),),
        {"targets": some_ignored(integers((2, 3), 5)), "label_smoothing": 0.3},
    ),
    Case("cross_entropy", "0 ignored", ((4, 5),), {"targets": np.array([0, 1, 0, 4]), "ignore_index": 0}),
    Case("cross_entropy", "all ignored", ((4, 5),), {"targets": np.full(4, IGNORED)}),
    Case("cross_entropy", "no rows", ((0, 5),), {"targets": np.zeros(0, int)}),
    Case("cross_entropy", "large", ((30, 60),), {"targets": integers(30, 60), "label_smoothing": 0.1}),
    Case(
        "linear_cross_entropy",
        "bias",
        ((2, 3, 4), (5, 4), (5,)),
        {"targets": some_ignored(integers((2, 3), 5))},
    ),
    Case(
        "linear_cross_entropy",
        "no bias, smoothed",
        ((3, 4), (5, 4), None),
        {"targets": integers(3, 5), "label_smoothing": 0.1},
    ),
    Case(
        "linear_cross_entropy",
        "0 ignored",
        ((4, 3), (5, 3), (5,)),
        {"targets": np.array([0, 1, 0, 4]), "ignore_index": 0},
    ),
    Case("linear_cross_entropy", "all ignored", ((3, 4), (5, 4), None), {"targets": np.full(3, IGNORED)}),
    Case("linear_cross_entropy", "large", ((20, 30), (50, 30), (50,)), {"targets": integers(20, 50)}),
    Case("attention", "full", heads(2, 3, 3, 2, 2, 2), {"mask": full_mask(3)}),
    Case("attention", "causal", heads(2, 3, 3, 2, 2, 2), {"mask": causal_mask(3)}),
    Case("attention", "prefix", heads(2, 4, 4, 1, 1, 2), {"mask": Mask(4, np.array([2, 3]), 0)}),
    Case("attention", "padded", heads(2, 4, 4, 1, 1, 2), {"mask": Mask(np.array([2, 4]), 4, 0)}),
    Case("attention", "padded, causal", heads(2, 4, 4, 1, 1, 2), {"mask": Mask(np.array([2, 3]))}),
    Case(
        "attention", "offsets", heads(2, 2, 5, 1, 1, 2), {"mask": Mask(np.array([3, 5]), 0, np.array([1, 3]))}
    ),
    Case(
        "attention",
        "everything at once",
        heads(2, 3, 5, 4, 2, 2),
        {
            "mask": Mask(np.array([4, 5]), np.array([1, 2]), np.array([0, 2])),
            "bias": bias_of_scores((2, 4, 3, 5), -np.inf),
            "scale": 0.9,
            "dropout": 0.3,
            "key": KEY,
        },
    ),
    Case("attention", "grouped", heads(1, 3, 3, 4, 2, 2), {"mask": causal_mask(3)}),
    Case("attention", "one key head", heads(1, 3, 3, 3, 1, 2), {"mask": causal_mask(3)}),
    Case("attention", "scale", heads(1, 3, 3, 1, 1, 2), {"mask": full_mask(3), "scale": 1.5}),
    Case(
        "attention",
        "bias of all",
        heads(2, 3, 3, 2, 1, 2),
        {"mask": full_mask(3), "bias": bias_of_scores((3, 3), -1e30)},
    ),
    Case(
        "attention",
        "bias by head",
        heads(2, 3, 4, 2, 2, 2),
        {"mask": full_mask(4), "bias": bias_of_scores((2, 1, 4), -1e30)},
    ),
    Case(
        "attention",
        "bias by row",
        heads(2, 3, 4, 2, 2, 2),
        {"mask": causal_mask(4), "bias": bias_of_scores((2, 1, 1, 4), -np.inf, seed=1)},
    ),
    Case(
        "attention",
        "bias of everyone",
        heads(2, 3, 3, 2, 1, 2),
        {"mask": causal_mask(3), "bias": bias_of_scores((2, 2, 3, 3), -1e30)},
    ),
    Case(
        "attention",
        "bias hides a query's keys",
        heads(1, 3, 3, 2, 2, 2),
        {"mask": full_mask(3), "bias": SEES_NOTHING_IN_ROW_1},
    ),
    Case("attention", "a row without keys", heads(2, 3, 3, 1, 1, 2), {"mask": Mask(np.array([0, 3]), 3, 0)}),
    Case("attention", "queries before all keys", heads(1, 3, 3, 1, 1, 2), {"mask": Mask(3, 0, -2)}),
    Case("attention", "dropout", heads(2, 3, 3, 2, 2, 2), {"mask": full_mask(3), "dropout": 0.4, "key": KEY}),
    Case(
        "attention",
        "dropout, grouped",
        heads(1, 3, 4, 4, 2, 2),
        {"mask": Mask(4, 0, 1), "dropout": 0.4, "key": KEY},
    ),
    Case("attention", "dropout without key", heads(1, 2, 2, 1, 1, 2), {"mask": full_mask(2), "dropout": 0.4}),
    Case("attention", "one token", heads(2, 1, 1, 2, 1, 3), {"mask": causal_mask(1)}),
    Case("attention", "one query", heads(2, 1, 4, 2, 2, 2), {"mask": Mask(4, 0, np.array([3, 1]))}),
    Case("attention", "more queries than keys", heads(1, 5, 2, 2, 2, 3), {"mask": full_mask(2)}),
    Case("attention", "no rows", heads(0, 3, 3, 2, 1, 2), {"mask": causal_mask(3)}),
    Case("attention", "no keys", heads(2, 3, 0, 2, 1, 2), {"mask": full_mask(0)}),
    Case("attention", "no queries", heads(2, 0, 3, 2, 1, 2), {"mask": full_mask(3)}),
    Case(
        "attention",
        "large",
        heads(2, 17, 23, 4, 2, 7),
        {"mask": Mask(np.array([21, 23]), np.array([0, 5]), 4), "dropout": 0.2, "key": KEY},
    ),
]

SMALL_CASES = [case for case in CASES if case.variant != "large"]


def names(cases):
    """Return the test ids of ``cases``."""
    return [f"{case.operation}-{case.variant}" for case in cases]


def upstream(y, seed=1):
    """Return a random gradient of ``y``, in its type."""
    return np.asarray(np.random.default_rng(seed).normal(size=np.shape(y)), y.dtype)


def check_refusal_of_dy(pair, arrays, dy, settings):
    """Fail unless the backward of ``pair`` refuses another shape or type of ``dy`` in its words."""
    forward, backward = pair
    _, saved = forward(*arrays, **settings)
    name, wrong = backward.__name__, dy[..., 1:]
    with pytest.raises(ValueError) as refused:
        backward(wrong, saved)
    assert str(refused.value) == f"{name}: dy has shape {wrong.shape}; expected that of y, {dy.shape}"
    with pytest.raises(TypeError) as refused:
        backward(dy.astype(np.float64), saved)
    assert str(refused.value) == (
        f"{name}: the gradient is float64 but the forward's arrays were {dy.dtype.name}; "
        "cast it to the type of the forward's result"
    )


def check_adds(case, backward=None):
    """Fail unless ``backward`` adds its gradients into the arrays that own them, whatever their layout."""
    backward = backward or case.backward
    y, saved = case.forward(*case.arrays(), **case.settings)
    dy = upstream(y)
    gradients = backward(dy, saved)
    # all have owners, then all but one; as they lie, then transposed
    for number, layout in itertools.product(range(len(gradients) + 1), (np.ascontiguousarray, transposed)):
        owners = [
            None if gradient is None or place == number else layout(upstream(gradient))
            for place, gradient in enumerate(gradients)
        ]
        before = [None if owner is None else owner.copy() for owner in owners]
        returned = backward(dy, saved, add_to=tuple(owners))
        for gradient, owner, old, new in zip(gradients, owners, before, returned, strict=True):
            if owner is None:
                np.testing.assert_array_equal(new, gradient)
            else:
                assert new is owner
                np.testing.assert_allclose(new, old + gradient, rtol=1e-12, atol=1e-12)


def transposed(array):
    """Return the same values, laid out in memory with the axes in reverse."""
    return np.asfortranarray(array)
