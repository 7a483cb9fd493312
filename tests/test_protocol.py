"""The protocol of layers, by example: read this before building a model on it.

A layer called returns its value and its pullback. A pullback takes the gradient of the value, adds the
gradients of the parameters, and returns the gradient of every array input, in order.
"""

import numpy as np

from minitransformer import gradcheck, inference
from minitransformer.dispatch import (
    linear,
    linear_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
)
from minitransformer.functional import Key, Mask, causal_mask, full_mask
from minitransformer.layers import CrossAttention, Embedding, Linear, PreNormBlock, recompute
from minitransformer.models import GPT, GPTConfig
from minitransformer.parameters import Layer

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
    block = PreNormBlock(8, 2, 16, dropout=0.4).build(dtype="float64")
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


def test_what_inference_saves_nothing_of_has_no_backward():
    layer = Linear(3, 2).build()
    with inference():
        y, backward = layer(np.ones((1, 3), np.float32))
    try:
        backward(y)
    except RuntimeError as error:
        assert "inference()" in str(error)
    else:
        raise AssertionError("the pullback ran")


def test_dropping_the_pullback_frees_what_it_held():
    import weakref

    x = np.ones((2, 3))
    y, saved = linear(x, np.ones((3, 4)), None)
    assert linear_backward(y, saved)[0].shape == x.shape
    held = weakref.ref(x)
    del x
    assert held() is not None
    del saved
    assert held() is None


def test_one_mask_rule_for_every_architecture():
    """The second query of each row, under the masks of BERT, GPT, UniLM and a cache that holds two."""
    from minitransformer.functional import visible

    mask = Mask(
        kv_len=np.array([4, 4, 4, 3]), prefix_len=np.array([4, 0, 3, 0]), offset=np.array([0, 0, 0, 1])
    )
    seen = visible(np, mask, 2, 4)[:, 1].astype(int).tolist()
    assert seen == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]


def small_gpt():
    config = GPTConfig(vocabulary_size=11, context_length=8, layers=2, heads=2, width=8)
    return GPT(config).build(seed=3, dtype="float64")


def padded_batch(lengths, vocabulary):
    shape = len(lengths), int(lengths.max())
    ids, targets = RANDOM.integers(0, vocabulary, (2, *shape))
    targets[np.arange(shape[1]) >= lengths[:, None]] = -100
    return {"ids": ids, "targets": targets, "lengths": lengths}
