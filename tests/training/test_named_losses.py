"""A model with two losses: each is a mean over its own targets, however the batch is divided."""

from types import SimpleNamespace

import numpy as np
import pytest

from minitransformer import dispatch
from minitransformer.evaluation import scores
from minitransformer.layers import Embedding
from minitransformer.parameters import Layer
from minitransformer.training import train_step
from minitransformer.training.optimisers import SGD

RANDOM = np.random.default_rng(0)
EXAMPLES, LENGTH, VOCABULARY, WIDTH = 32, 6, 11, 8
NAMES = "masked_tokens", "next_sentences"


class TwoLosses(Layer):
    """Predicts some tokens, each from itself alone, and from the first of a row one of two classes."""

    def __init__(self):
        self.config = SimpleNamespace(vocabulary_size=VOCABULARY, context_length=LENGTH)
        self.embedding = Embedding(VOCABULARY, WIDTH)
        self.classes = Embedding(2, WIDTH)

    def loss(self, batch, key=None):
        h, embedding_backward = self.embedding(batch["ids"])
        tokens, tokens_backward = self.predict(h, self.embedding.table, batch["targets"])
        sentences, sentences_backward = self.predict(h[:, 0], self.classes.table, batch["next_sentence"])

        def backward(weights):
            dh = tokens_backward(weights["masked_tokens"])
            dh[:, 0] += sentences_backward(weights["next_sentences"])
            embedding_backward(dh)

        return {"masked_tokens": tokens, "next_sentences": sentences}, backward

    def predict(self, h, table, targets):
        total, saved = dispatch.linear_cross_entropy(h, table.value, None, targets=targets)

        def backward(weight):
            owners = (None, table.gradient, None)
            return dispatch.linear_cross_entropy_backward(weight, saved, add_to=owners)[0]

        return total, backward

    @staticmethod
    def count_targets(batch):
        parts = batch["targets"], batch["next_sentence"]
        return {name: int((part != -100).sum()) for name, part in zip(NAMES, parts, strict=True)}


class Pairs:
    """Examples with more masked tokens the later they stand, and no class for every fourth and the last 8."""

    def __init__(self):
        self.ids = RANDOM.integers(0, VOCABULARY, (EXAMPLES, LENGTH))
        masked = RANDOM.random((EXAMPLES, LENGTH)) < np.linspace(0.1, 0.9, EXAMPLES)[:, None]
        self.targets = np.where(masked, RANDOM.integers(0, VOCABULARY, (EXAMPLES, LENGTH)), -100)
        place = np.arange(EXAMPLES)
        known = (place % 4 > 0) & (place < 24)
        self.next_sentence = np.where(known, RANDOM.integers(0, 2, EXAMPLES), -100)

    def places(self):
        return range(EXAMPLES)

    def collate(self, places):
        places = list(places)
        return {
            "ids": self.ids[places],
            "targets": self.targets[places],
            "next_sentence": self.next_sentence[places],
        }


@pytest.fixture
def model():
    model = TwoLosses().build(seed=1, dtype="float64")
    model.flat.values[...] = RANDOM.normal(0, 0.5, model.flat.values.shape)
    return model


@pytest.fixture(scope="module")
def pairs():
    return Pairs()


def gradients_of(model, batch, name):
    """Return the gradient of the sum that is called ``name``, and that sum."""
    model.zero_gradients()
    totals, backward = model.loss(batch)
    backward({other: float(other == name) for other in NAMES})
    return model.flat.gradients.copy(), float(totals[name])


@pytest.mark.parametrize("rows", [4, 8, 32])
def test_each_loss_is_the_mean_over_its_own_targets(model, pairs, rows):
    whole = pairs.collate(pairs.places())
    counts = model.count_targets(whole)
    assert counts["masked_tokens"] > 3 * counts["next_sentences"] > 0
    losses, gradients = {}, 0.0
    for name in NAMES:
        gradient, total = gradients_of(model, whole, name)
        assert gradient.any()
        losses[name] = total / counts[name]
        gradients = gradients + gradient / counts[name]

    batches = [pairs.collate(range(first, first + rows)) for first in range(0, EXAMPLES, rows)]
    result = train_step(model, SGD(model), batches, learning_rate=0.0)
    assert result.counts == counts
    assert result.losses == pytest.approx(losses, rel=1e-12)
    assert result.loss == pytest.approx(sum(losses.values()), rel=1e-12)
    assert result.gradient_norm == pytest.approx(np.linalg.norm(gradients), rel=1e-12)
    np.testing.assert_allclose(model.flat.gradients, gradients, rtol=0, atol=1e-12 * np.abs(gradients).max())


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_the_validation_loss_is_the_loss_that_is_trained(model, pairs, monkeypatch, rows):
    monkeypatch.setattr(scores, "BATCH_TOKENS", rows * LENGTH)
    trained = train_step(model, SGD(model), [pairs.collate(pairs.places())], learning_rate=0.0)
    assert scores.whole_loss(model, pairs) == pytest.approx(trained.loss, rel=1e-12)


def test_a_loss_without_targets_is_zero_and_has_no_gradient(model, pairs):
    last = pairs.collate(range(24, 32))
    assert model.count_targets(last)["next_sentences"] == 0
    result = train_step(model, SGD(model), [last], learning_rate=0.0)
    assert result.losses["next_sentences"] == 0
    assert result.counts["next_sentences"] == 0
    assert not model.classes.table.gradient.any()
    assert model.embedding.table.gradient.any()


class Alternating(TwoLosses):
    """Has one loss per batch, as models that are trained on several objectives in turn."""

    def loss(self, batch, key=None):
        totals, both_backward = super().loss(batch, key)
        own = self.objective(batch)

        def backward(weights):
            both_backward({name: weights[name] * (name == own) for name in NAMES})

        return {own: totals[own]}, backward

    @staticmethod
    def objective(batch):
        return NAMES[int(batch["objective"])]

    @classmethod
    def count_targets(cls, batch):
        return {cls.objective(batch): TwoLosses.count_targets(batch)[cls.objective(batch)]}


def test_micro_batches_may_have_different_losses(pairs):
    model = Alternating().build(seed=1, dtype="float64")
    batches = [
        {**pairs.collate(range(first, first + 8)), "objective": np.array(objective)}
        for first, objective in ((0, 0), (8, 1), (16, 0))
    ]
    losses, gradients = dict.fromkeys(NAMES, 0.0), 0.0
    counts = {name: sum(model.count_targets(batch).get(name, 0) for batch in batches) for name in NAMES}
    for batch in batches:
        name = model.objective(batch)
        gradient, total = gradients_of(model, batch, name)
        losses[name] += total / counts[name]
        gradients = gradients + gradient / counts[name]
    result = train_step(model, SGD(model), batches, learning_rate=0.0)
    assert result.counts == counts
    assert result.losses == pytest.approx(losses, rel=1e-12)
    np.testing.assert_allclose(model.flat.gradients, gradients, rtol=0, atol=1e-12 * np.abs(gradients).max())
