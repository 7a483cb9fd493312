"""Planted mistakes in layers and models: compositions with something left out; see ``mutations``."""

import inspect
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from common.layer_table import LAYER_CASES, check
from common.mutations import mutated, named, run

from minitransformer import layers, models
from minitransformer.functional import Key
from minitransformer.gradcheck import GradientError, check_layer, check_model


class Composition(NamedTuple):
    """A mistake in a layer's ``__call__``, and the row of ``LAYER_CASES`` that shows it."""

    row: str
    mistake: str
    old: str
    new: str


SECOND_HALF = "norm2_backward(feed_forward_backward(dropout2_backward(dy)))"
FIRST_HALF = "norm1_backward(attention_backward(dropout1_backward(dx)))"

COMPOSITIONS = [
    Composition("Linear", "bias without owner", "_gradient(self.bias)", "None"),
    Composition("Linear", "weight without owner", "self.weight.gradient", "None"),
    Composition("LinearGelu exact", "weight without owner", "self.weight.gradient", "None"),
    Composition("Embedding", "table without owner", "self.table.gradient", "self.table.gradient.copy()"),
    Composition("LearnedPositions", "table without owner", "self.table.gradient", "None"),
    Composition(
        "SinusoidalPositions",
        "gradient stops",
        "dispatch.add_sinusoids_backward(dy, call)[0]",
        "dispatch.add_sinusoids_backward(0 * dy, call)[0]",
    ),
    Composition("LayerNorm", "bias without owner", "_gradient(self.bias)", "None"),
    Composition("AddLayerNorm", "gain without owner", "self.gain.gradient", "None"),
    Composition("AddLayerNorm", "residual forgotten", "return dx, dresidual", "return dx, 0 * dresidual"),
    Composition("Dropout", "mask forgotten", "return dispatch.dropout_backward(dy, call)[0]", "return dy"),
    Composition("Relu", "kink forgotten", "return dispatch.relu_backward(dy, call)[0]", "return dy"),
    Composition(
        "FeedForward relu",
        "activation forgotten",
        "reversed(backwards)",
        "reversed(backwards[:1] + backwards[2:])",
    ),
    Composition(
        "SelfAttention",
        "dq and dk swapped",
        "self._split(dpacked)",
        "[self._split(dpacked)[i] for i in (1, 0, 2)]",
    ),
    Composition(
        "SelfAttention, groups",
        "dk and dv swapped",
        "self._split(dpacked)",
        "[self._split(dpacked)[i] for i in (0, 2, 1)]",
    ),
    Composition(
        "CrossAttention", "memory forgotten", "packed_backward(dpacked)", "0 * packed_backward(dpacked)"
    ),
    Composition("CrossAttention", "dk and dv swapped", "self._split(dpacked)", "self._split(dpacked)[::-1]"),
    Composition(
        "PreNormBlock", "second residual forgotten", f"dx = dy + {SECOND_HALF}", f"dx = {SECOND_HALF}"
    ),
    Composition("PreNormBlock", "first residual forgotten", f"dx + {FIRST_HALF}", FIRST_HALF),
    Composition(
        "PreNormBlock", "first residual past the second half", f"dx + {FIRST_HALF}", f"dy + {FIRST_HALF}"
    ),
    Composition("PreNormBlock, dropout", "first dropout forgotten", "dropout1_backward(dx)", "dx"),
    Composition("PreNormBlock, dropout", "second dropout forgotten", "dropout2_backward(dy)", "dy"),
    Composition(
        "PostNormBlock",
        "second residual forgotten",
        "dx + feed_forward_backward(dropout2_backward(dh))",
        "feed_forward_backward(dropout2_backward(dh))",
    ),
    Composition(
        "PostNormBlock",
        "first residual forgotten",
        "dx + attention_backward(dropout1_backward(dh))",
        "attention_backward(dropout1_backward(dh))",
    ),
    Composition("PostNormBlock exact, dropout", "dropout forgotten", "dropout1_backward(dh)", "dh"),
]


@named(COMPOSITIONS)
def test_a_mistake_in_a_layer_is_caught(row, monkeypatch):
    layer = type(LAYER_CASES[row.row][0])
    check(row.row)
    plant(monkeypatch, layer, "__call__", row.old, row.new)
    with pytest.raises(GradientError):
        check(row.row)


def plant(monkeypatch, owner, name, old, new):
    """Replace ``old`` in the source of the method ``owner.name``."""
    method = vars(owner)[name]
    module = inspect.getmodule(method)
    namespace = run(mutated(inspect.getsource(method), old, new), module, vars(module))
    monkeypatch.setattr(owner, name, namespace[name])


RUN_AGAIN = "_, layer_backward = self.layer(*arrays, **settings)"
ANOTHER_KEY = "{**settings, 'key': settings['key']._replace(stream=8)}"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (RUN_AGAIN, RUN_AGAIN.replace("settings", ANOTHER_KEY)),
        ("return layer_backward(*dy)", "return 0 * layer_backward(*dy)"),
    ],
    ids=["another key", "input gradient lost"],
)
def test_a_mistake_in_recomputation_is_caught(old, new, monkeypatch):
    plant(monkeypatch, type(layers.recompute(layers.Relu())), "__call__", old, new)
    with pytest.raises(GradientError):
        check("recomputation, dropout")


SMALL_GPT = models.GPTConfig(
    vocabulary_size=7, context_length=5, layers=2, heads=2, width=8, feed_forward_width=25, dropout=0.2
)
BATCH = {
    "ids": np.array([[1, 0, 6, 1, 1], [2, 3, 3, 5, 0]]),
    "targets": np.array([[0, 6, 1, 1, -100], [3, 3, -100, -100, -100]]),
    "lengths": np.array([5, 3]),
}


def check_loss():
    check_model(models.GPT(SMALL_GPT).build(dtype="float64"), BATCH, key=Key(6))


def check_logits():
    check_layer(models.GPT(SMALL_GPT).build(dtype="float64"), BATCH, key=Key(6))


# check, mistake, method, old, new
MODELS = [
    (check_loss, "tied gradient forgotten in the head", "loss", "(None, table.gradient, None)", "None"),
    (check_logits, "tied gradient forgotten in the logits", "head", "table.gradient.T", "None"),
    (check_loss, "weight of the loss forgotten", "loss", 'weights["tokens"]', "1.0"),
    (check_loss, "gradient stops at the head", "loss", "hidden_backward(dh)", "pass"),
    (
        check_loss,
        "embedding forgotten",
        "hidden",
        "embedding_backward(positions_backward(dropout_backward(dx)))",
        "positions_backward(dropout_backward(dx))",
    ),
    (
        check_loss,
        "positions forgotten",
        "hidden",
        "positions_backward(dropout_backward(dx))",
        "dropout_backward(dx)",
    ),
    (check_loss, "dropout of the embedding forgotten", "hidden", "dropout_backward(dx)", "dx"),
    (
        check_loss,
        "blocks in the order of the forward",
        "hidden",
        "block_backwards.pop()",
        "block_backwards.pop(0)",
    ),
    (check_loss, "gradient past the last norm", "hidden", "dx = norm_backward(dh)", "dx = dh"),
]


@pytest.mark.parametrize("row", MODELS, ids=[row[1] for row in MODELS])
def test_a_mistake_in_gpt_is_caught(row, monkeypatch):
    check_whole, _, method, old, new = row
    plant(monkeypatch, models.GPT, method, old, new)
    with pytest.raises(GradientError):
        check_whole()


@pytest.mark.parametrize("check_whole", [check_loss, check_logits])
def test_gpt_is_right_as_it_stands(check_whole):
    check_whole()


def test_every_layer_has_a_mistake():
    known = {
        value for value in vars(layers).values() if isinstance(value, type) and value is not layers.Cache
    }
    missing = {layer.__name__ for layer in known - {type(LAYER_CASES[row.row][0]) for row in COMPOSITIONS}}
    assert not missing, f"plant a mistake in it, in COMPOSITIONS of {Path(__file__).name}: {missing}"
