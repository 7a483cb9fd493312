"""The protocol of layers, by example: read this before building a model on it.

A layer called returns its value and its pullback. A pullback takes the gradient of the value, adds the
gradients of the parameters, and returns the gradient of every array input, in order.
"""

import copy
import weakref

import numpy as np
import pytest
from common.blocks import pre_norm_block

from minitransformer import gradcheck, inference
from minitransformer.dispatch import linear_cross_entropy, linear_cross_entropy_backward
from minitransformer.functional import Key, causal_mask, full_mask
from minitransformer.layers import CrossAttention, Embedding, Linear, recompute
from minitransformer.models import GPT, GPTConfig
from minitransformer.parameters import Layer, Parameter, zeros

RANDOM = np.random.default_rng(0)


def test_cross_attention_returns_a_gradient_for_each_input():
    class Decoder(Layer):
        """Two layers that look at one memory: its gradient is the sum over both."""

        def __init__(self):
            self.first, self.second = CrossAttention(8, 2), CrossAttention(8, 2)

        def __call__(self, x, memory, mask):
            h, first_backward = self.first(x, memory, mask)
            y, second_backward = self.second(h, memory, mask)

            def backward(dy):
                dh, dmemory = second_backward(dy)
                dx, more = first_backward(dh)
                return dx, dmemory + more

            return y, backward

    decoder = Decoder().build(dtype="float64")
    x, memory = RANDOM.normal(size=(2, 3, 8)), RANDOM.normal(size=(2, 5, 8))
    gradcheck.check_layer(decoder, x, memory, mask=full_mask(np.array([5, 2])))


class TiedAutoencoder(Layer):
    """Tokens in, the same tokens out, by one table used twice; and a second loss on the hidden states."""

    def __init__(self):
        self.embedding = Embedding(7, 8)
        self.hidden = Linear(8, 8)
        self.table = self.embedding.table  # shared: counts once, under its first path
        self.score = Linear(8, 1)

    def loss(self, batch):
        x, embedding_backward = self.embedding(batch["ids"])
        h, hidden_backward = self.hidden(x)
        score, score_backward = self.score(h)
        table = self.table
        tokens, saved = linear_cross_entropy(h, table.value, None, targets=batch["ids"])

        def backward(weights):
            owners = (None, table.gradient, None)
            dh, _, _ = linear_cross_entropy_backward(weights["tokens"], saved, add_to=owners)
            dh = dh + score_backward(2 * weights["size"] * score)
            embedding_backward(hidden_backward(dh))

        return {"tokens": tokens, "size": np.square(score).sum()}, backward


def test_a_tied_table_and_a_loss_of_two_terms():
    model = TiedAutoencoder().build(dtype="float64")
    assert list(model.parameters()) == [
        "embedding.table",
        "hidden.weight",
        "hidden.bias",
        "score.weight",
        "score.bias",
    ]
    gradcheck.check_model(model, {"ids": np.array([[1, 2, 6], [1, 1, 0]])})


def test_accumulation_is_the_big_batch():
    model = small_gpt()
    lengths = np.array([7, 2, 5, 4])
    batch = padded_batch(lengths, vocabulary=11)
    count = lengths.sum()

    model.zero_gradients()
    _, backward = model.loss(batch)
    backward({"tokens": 1 / count})
    whole = model.flat.gradients.copy()

    model.zero_gradients()
    for rows in (slice(0, 1), slice(1, 4)):
        _, backward = model.loss({name: array[rows] for name, array in batch.items()})
        backward({"tokens": 1 / count})
    np.testing.assert_allclose(model.flat.gradients, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_recomputation_drops_the_same_entries():
    block = pre_norm_block(8, 2, 16, dropout=0.4).build(dtype="float64")
    x, dy = RANDOM.normal(size=(2, 2, 5, 8))
    settings = {"mask": causal_mask(5), "key": Key(seed=1)}

    def gradients(layer):
        block.zero_gradients()
        y, backward = layer(x, **settings)
        return y, backward(dy), block.flat.gradients.copy()

    for plain, recomputed in zip(gradients(block), gradients(recompute(block)), strict=True):
        np.testing.assert_array_equal(recomputed, plain)


def test_a_layer_applied_twice_keeps_both_calls_apart():
    class Twice(Layer):
        def __init__(self):
            self.inner = Linear(4, 4)

        def __call__(self, x):
            h, first_backward = self.inner(x)
            y, second_backward = self.inner(h)
            return y, lambda dy: first_backward(second_backward(dy))

    gradcheck.check_layer(Twice().build(dtype="float64"), RANDOM.normal(size=(3, 4)))


def test_a_ragged_cache():
    """Rows of different lengths grow side by side, and then in another order."""
    model = small_gpt()
    full = padded_batch(np.array([8, 6]), vocabulary=11)["ids"]
    with inference():
        expected, _ = model({"ids": full})
        cache = model.cache(batch=2)
        prompts = {"ids": full[:, :5], "lengths": np.array([5, 3])}
        model(prompts, cache=cache)
        assert cache.lengths.tolist() == [5, 3]

        following = np.stack([full[0, 5:7], full[1, 3:5]])
        logits, _ = model({"ids": following}, cache=cache)
        np.testing.assert_allclose(logits[0], expected[0, 5:7], rtol=0, atol=1e-12)
        np.testing.assert_allclose(logits[1], expected[1, 3:5], rtol=0, atol=1e-12)

        cache.gather(np.array([1, 0]))
        logits, _ = model({"ids": np.array([full[1, 5:6], full[0, 7:8]])}, cache=cache)
        np.testing.assert_allclose(logits[0, 0], expected[1, 5], rtol=0, atol=1e-12)
        np.testing.assert_allclose(logits[1, 0], expected[0, 7], rtol=0, atol=1e-12)


def test_a_pullback_runs_once():
    _, backward = small_gpt().loss(padded_batch(np.array([3, 2]), vocabulary=11))
    backward({"tokens": 1.0})
    with pytest.raises(RuntimeError, match="this pullback has run already"):
        backward({"tokens": 1.0})


def test_under_inference_a_pullback_holds_no_array():
    """Neither what an operation saved nor what a closure happened to mention."""
    model = small_gpt()
    decoder = CrossAttention(8, 2).build()
    memory = np.ones((1, 4, 8), np.float32)
    with inference():
        _, backward = model.loss(padded_batch(np.array([3, 2]), vocabulary=11))
        _, decoder_backward = decoder(memory, memory, full_mask(4))
    for pullback in (backward, decoder_backward):
        assert not [array for array in held_by(pullback) if array.ndim > 1]


def held_by(function):
    """Yield the arrays in the closures of ``function`` and of the functions that those hold."""
    for cell in function.__closure__ or ():
        contents = cell.cell_contents
        for item in contents if isinstance(contents, list | tuple) else [contents]:
            if isinstance(item, np.ndarray):
                yield item
            elif callable(item) and hasattr(item, "__closure__"):
                yield from held_by(item)


def test_dropping_the_pullback_frees_what_it_held():
    layer = Linear(3, 4).build()
    x = np.ones((2, 3), np.float32)
    held = weakref.ref(x)
    _, backward = layer(x)
    del x
    assert held() is not None
    del backward
    assert held() is None


def test_parameters_are_found_wherever_they_stand():
    class Bag(Layer):
        def __init__(self):
            self.tables = [Parameter((2, 3), zeros), Parameter((4,), zeros)]
            self.named = {"left": Linear(2, 2, bias=False), "right": (Linear(2, 1),)}

    paths = list(Bag().build().parameters())
    assert paths == [
        "tables.0",
        "tables.1",
        "named.left.weight",
        "named.right.0.weight",
        "named.right.0.bias",
    ]


def test_a_part_of_a_model_keeps_its_place_in_the_model():
    model = small_gpt()
    with pytest.raises(RuntimeError, match="belongs to a GPT that was built already"):
        model.blocks[0].build()
    twin = copy.deepcopy(model)
    twin.flat.values[...] = 0
    assert not twin.embedding.table.value.any()
    assert model.embedding.table.value.any()
    model.embedding.table.gradient[0, 0] = 1
    assert np.count_nonzero(model.flat.gradients) == 1


def test_two_outputs_have_two_upstream_gradients():
    class Both(Layer):
        def __init__(self):
            self.left, self.right = Linear(3, 2), Linear(3, 4)

        def __call__(self, x):
            y, left_backward = self.left(x)
            z, right_backward = self.right(x)
            return (y, z), lambda dy, dz: left_backward(dy) + right_backward(dz)

    gradcheck.check_layer(Both().build(dtype="float64"), RANDOM.normal(size=(2, 3)))


def small_gpt():
    config = GPTConfig(vocabulary_size=11, context_length=8, layers=2, heads=2, width=8)
    return GPT(config).build(seed=3, dtype="float64")


def padded_batch(lengths, vocabulary):
    shape = len(lengths), int(lengths.max())
    ids, targets = RANDOM.integers(0, vocabulary, (2, *shape))
    targets[np.arange(shape[1]) >= lengths[:, None]] = -100
    return {"ids": ids, "targets": targets, "lengths": lengths}
