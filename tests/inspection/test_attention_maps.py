"""Attention maps, position tables and labels: what they hold is what the model does."""

import types

import numpy as np
import pytest
from common import emulated_cupy
from common.pictures import CONTEXT, HEADS, IDS, LAYERS, gpt
from tokenizers import Tokenizer, decoders, models

from minitransformer.data import character_tokenizer, encode
from minitransformer.errors import InputError
from minitransformer.functional import full_mask
from minitransformer.inspection.attention_maps import compute_attention_maps, label_tokens
from minitransformer.inspection.plots import compute_cosine_similarities, compute_position_table
from minitransformer.layers import CrossAttention, Embedding, SelfAttention
from minitransformer.parameters import Layer


def maps_by_hand(model, ids):
    """Return the attention maps of ``model`` (with ReLU), query by query, from its parameters alone."""
    values = {path: parameter.value for path, parameter in model.parameters().items()}
    x = values["embedding.table"][ids] + compute_position_table(model)[: len(ids)]
    layers = []
    for layer in range(model.config.layers):
        own = {path.split(".", 2)[2]: value for path, value in values.items() if f"blocks.{layer}." in path}
        q, k, v = np.split(affine(norm(x, own, "norm1"), own, "attention.query_key_value"), 3, axis=1)
        width = x.shape[1] // model.config.heads
        maps, heads = [], []
        for first in range(0, x.shape[1], width):
            of_head = slice(first, first + width)
            probabilities = np.zeros((len(ids), len(ids)))
            for i in range(len(ids)):
                weights = np.exp(k[: i + 1, of_head] @ q[i, of_head] / np.sqrt(width))
                probabilities[i, : i + 1] = weights / weights.sum()
            maps.append(probabilities)
            heads.append(probabilities @ v[:, of_head])
        layers.append(maps)
        x = x + affine(np.concatenate(heads, axis=1), own, "attention.output")
        hidden = np.maximum(affine(norm(x, own, "norm2"), own, "feed_forward.hidden.0"), 0)
        x = x + affine(hidden, own, "feed_forward.output")
    return np.array(layers)


def affine(x, values, name):
    return x @ values[f"{name}.weight"] + values[f"{name}.bias"]


def norm(x, values, name):
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return scaled * values[f"{name}.gain"] + values[f"{name}.bias"]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_maps_are_those_of_the_model(positions):
    model = gpt(positions=positions)
    maps, visible = compute_attention_maps(model, IDS)
    assert maps.shape == (LAYERS, HEADS, len(IDS), len(IDS))
    np.testing.assert_allclose(maps, maps_by_hand(model, IDS), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(visible, np.tile(np.tri(len(IDS), dtype=bool), (LAYERS, 1, 1)))
    assert maps[..., -1, :].max() > 2 / len(IDS), "this test wants a model that prefers some tokens"


def test_rows_sum_to_one_and_the_future_is_zero():
    maps, _ = compute_attention_maps(gpt(), IDS)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=0, atol=1e-12)
    assert not np.triu(maps, 1).any()


def test_a_later_token_changes_no_earlier_row():
    model, place = gpt(), 5
    other = IDS.copy()
    other[place:] = 7
    (maps, _), (changed, _) = compute_attention_maps(model, IDS), compute_attention_maps(model, other)
    np.testing.assert_allclose(changed[..., :place, :], maps[..., :place, :], rtol=0, atol=1e-12)
    assert not np.allclose(changed[..., place, :], maps[..., place, :])


def test_the_maps_are_of_evaluation_and_of_the_models_type():
    model, with_dropout = gpt("float32"), gpt("float32", dropout=0.5)
    maps, _ = compute_attention_maps(with_dropout, IDS.tolist())
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(maps, compute_attention_maps(model, IDS)[0])


def test_a_model_on_a_device_gives_the_same_on_the_host(monkeypatch):
    emulated_cupy.install(monkeypatch)
    for there, here in zip(
        compute_attention_maps(gpt(device="cuda"), IDS), compute_attention_maps(gpt(), IDS), strict=True
    ):
        np.testing.assert_array_equal(there, here)
    np.testing.assert_array_equal(compute_position_table(gpt(device="cuda")), compute_position_table(gpt()))


class Seq2Seq(Layer):
    """Two blocks without a mask, each with cross-attention from the tokens to two rows of its own."""

    def __init__(self):
        self.config = types.SimpleNamespace(context_length=CONTEXT)
        self.embedding, self.memory = Embedding(10, 6), Embedding(2, 6)
        self.blocks = [Pair(SelfAttention(6, 2), CrossAttention(6, 3)) for _ in range(LAYERS)]

    def hidden(self, batch):
        x, _ = self.embedding(batch["ids"])
        memory, _ = self.memory(np.arange(2)[None])
        for block in self.blocks:
            h, _ = block.attention(x, full_mask(x.shape[1]))
            x, _ = block.cross_attention(h, memory, full_mask(2))
        return x, None


class Pair(Layer):
    def __init__(self, attention, cross_attention):
        self.attention, self.cross_attention = attention, cross_attention


@pytest.mark.parametrize("length", [2, 5], ids=["as long as the memory", "longer"])
def test_attention_to_all_tokens_beside_cross_attention(length):
    maps, visible = compute_attention_maps(Seq2Seq().build(seed=0), IDS[:length])
    assert maps.shape == (LAYERS, 2, length, length)
    assert visible.shape == (LAYERS, length, length) and visible.all()
    assert (maps > 0).all()


def test_a_model_without_attention_is_refused():
    model = Seq2Seq()
    model.blocks = []
    with pytest.raises(InputError, match="no attention with 3 queries"):
        compute_attention_maps(model.build(), IDS[:3])


def test_weights_that_are_not_finite_are_refused():
    model = gpt("float32")
    model.flat.values[...] = 1e38
    with pytest.raises(InputError, match="contains NaN or infinity"), np.errstate(all="ignore"):
        compute_attention_maps(model, IDS)


def test_the_position_table():
    learned = gpt()
    np.testing.assert_array_equal(compute_position_table(learned), learned.positions.table.value)
    table = compute_position_table(gpt(positions="sinusoidal"))
    assert table.shape == (CONTEXT, 12)
    np.testing.assert_allclose(
        table[3, :4], [f(3 / s) for s in (1, 1e4 ** (2 / 12)) for f in (np.sin, np.cos)]
    )


def test_cosine_similarities():
    table = np.array([[1.0, 0], [3, 3], [-2, 0], [0, 0]])
    half = np.sqrt(0.5)
    expected = [[1, half, -1, 0], [half, 1, -half, 0], [-1, -half, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(compute_cosine_similarities(table), expected, atol=1e-15)


def test_labels_make_every_token_visible():
    tokenizer = character_tokenizer("\n\t\r ab$é中\u200b😀")
    labels = dict(
        zip("\n\t\r ab$é中\u200b", ["⏎", "⇥", r"\r", "␣", *"ab$é", r"\u4e2d", r"\u200b"], strict=True)
    )
    assert label_tokens(tokenizer, encode(tokenizer, "".join(labels))) == list(labels.values())


def test_labels_of_byte_pairs_are_text_or_escaped_bytes():
    words = ["def", "Ġself", "Ċ", "â", "Ĥ", "-" * 30, "<|end|>"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    expected = ["def", "␣self", "⏎", r"\xe2", r"\x82", "-" * 13 + "…", "<|end|>"]
    assert label_tokens(tokenizer, range(len(words))) == expected


def test_labels_of_other_tokenizers_are_the_tokens():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "read": 1, "##ing": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert label_tokens(tokenizer, [1, 2, 0]) == ["read", "##ing", "[UNK]"]
