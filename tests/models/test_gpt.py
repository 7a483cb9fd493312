"""The GPT: its gradient whole, its counts, and what must not change its outputs."""

import numpy as np
import pytest

from minitransformer import gradcheck, inference
from minitransformer.functional import Key, causal_mask
from minitransformer.layers import SelfAttention, recompute
from minitransformer.layers.cache import KeyValues
from minitransformer.models import GPT, GPTConfig

TINY = {"vocabulary_size": 11, "context_length": 8, "layers": 2, "heads": 2, "width": 8}
RANDOM = np.random.default_rng(0)


def batch(rows=3, length=7, vocabulary=11, lengths=None):
    ids, targets = RANDOM.integers(0, vocabulary, (2, rows, length))
    if lengths is None:
        return {"ids": ids, "targets": targets}
    targets[np.arange(length) >= lengths[:, None]] = -100
    return {"ids": ids, "targets": targets, "lengths": lengths}


@pytest.mark.parametrize("activation", ["gelu_exact", "gelu_tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_gradient_of_the_whole_model(activation, bias, positions):
    model = GPT(GPTConfig(**TINY, activation=activation, bias=bias, positions=positions))
    gradcheck.check_model(model.build(dtype="float64"), batch(lengths=np.array([7, 4, 1])))


def test_gradient_with_dropout():
    model = GPT(GPTConfig(**TINY, dropout=0.3)).build(dtype="float64")
    gradcheck.check_model(model, batch(), key=Key(5))


def test_gradient_of_a_larger_model_by_directions():
    config = GPTConfig(vocabulary_size=65, context_length=32, layers=3, heads=4, width=48)
    gradcheck.check_model(GPT(config).build(dtype="float64"), batch(4, 32, 65))


def test_float32_gradients_are_as_good_as_pytorchs(torch):
    """Each tensor's error against float64 is at most twice PyTorch's own."""
    from bench import torch_gpt

    config = GPTConfig(vocabulary_size=65, context_length=32, layers=3, heads=4, width=64)
    model = GPT(config).build(seed=1)
    data = batch(4, 32, 65)
    _, backward = model.loss(data)
    backward({"tokens": 1 / 128})

    def theirs(dtype):
        tensors = torch_gpt.tensors_like(model, dtype)
        loss = torch_gpt.mean_loss(tensors, config, *(torch.from_numpy(data[n]) for n in ("ids", "targets")))
        gradients = torch.autograd.grad(loss, list(tensors.values()))
        return {path: gradient.numpy() for path, gradient in zip(tensors, gradients, strict=True)}

    exact, single = theirs(torch.float64), theirs(torch.float32)
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in exact.values()))
    for path, parameter in model.parameters().items():
        error = np.linalg.norm(parameter.gradient - exact[path])
        floor = 16 * 2.0**-24 * max(np.linalg.norm(exact[path]), 1e-3 * whole)
        assert error <= 2 * max(np.linalg.norm(single[path] - exact[path]), floor), path


def test_gradient_of_the_logits():
    class Logits(GPT):
        def __call__(self, ids):
            return super().__call__({"ids": ids})

    gradcheck.check_layer(Logits(GPTConfig(**TINY)).build(dtype="float64"), batch()["ids"])


def test_counts_of_gpt2():
    """The published figures for GPT-2 without biases at 1024 tokens."""
    model = GPT(GPTConfig(bias=False))
    assert model.parameter_count() == 124_337_664
    assert model.forward_flops(1024) == 291_648_307_200


@pytest.mark.parametrize(
    ("layers", "heads", "width", "context_length", "count"),
    [(6, 6, 384, 256, 10_646_784), (4, 4, 128, 64, 795_904)],
)
def test_counts_of_nanogpt(layers, heads, width, context_length, count):
    """nanoGPT counts without the positions."""
    config = GPTConfig(65, context_length, layers, heads, width, bias=False)
    assert GPT(config).parameter_count() - context_length * width == count


def test_a_token_does_not_depend_on_what_follows():
    model = GPT(GPTConfig(**TINY)).build(dtype="float64")
    ids = batch()["ids"]
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    logits, changed_logits = model({"ids": ids})[0], model({"ids": changed})[0]
    np.testing.assert_array_equal(logits[:, :4], changed_logits[:, :4])
    assert (logits[:, 4:] != changed_logits[:, 4:]).any()


def test_padding_changes_nothing():
    model = GPT(GPTConfig(**TINY)).build(dtype="float64")
    padded = batch(lengths=np.array([7, 4, 1]))
    totals, backward = model.loss(padded)
    backward({"tokens": 1.0})
    gradients = model.flat.gradients.copy()
    model.zero_gradients()
    alone = 0.0
    for row, length in enumerate(padded["lengths"]):
        part = {name: padded[name][row : row + 1, :length] for name in ("ids", "targets")}
        total, backward = model.loss(part)
        backward({"tokens": 1.0})
        alone += total["tokens"]
    assert totals["tokens"] == pytest.approx(alone, rel=1e-13)
    np.testing.assert_allclose(model.flat.gradients, gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_cached_logits_equal_uncached(positions):
    model = GPT(GPTConfig(**TINY, positions=positions)).build(dtype="float64")
    ids = batch(length=8)["ids"]
    with inference():
        full, _ = model({"ids": ids})
        cache = model.cache(3)
        parts = [model({"ids": ids[:, a:b]}, cache=cache)[0] for a, b in [(0, 3), (3, 4), (4, 8)]]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), full, rtol=0, atol=1e-12)


def test_cache_needs_inference_and_room():
    model = GPT(GPTConfig(**TINY)).build()
    with pytest.raises(RuntimeError, match=r"inference\(\)"):
        model(batch(), cache=model.cache(3))
    with inference(), pytest.raises(ValueError, match="holds 8 tokens per row; 9 would be needed"):
        cache = model.cache(3)
        model(batch(), cache=cache)
        model(batch(length=2), cache=cache)


def test_dropout_follows_the_key_alone():
    model = GPT(GPTConfig(**TINY, dropout=0.5)).build()
    data = batch()
    first, again, other, off = (model(data, key=key)[0] for key in (Key(1), Key(1), Key(2), None))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert (first != off).any()


def test_everything_keeps_the_type_of_the_parameters():
    for dtype in ("float32", "float64"):
        model = GPT(GPTConfig(**TINY, dropout=0.1)).build(dtype=dtype)
        logits, backward = model(batch(), key=Key(1))
        totals, _ = model.loss(batch(), key=Key(1))
        backward(np.ones_like(logits))
        assert logits.dtype == totals["tokens"].dtype == model.flat.gradients.dtype == dtype


def test_parameters_are_aligned_views_and_initialised_alike_in_both_types():
    single, double = (GPT(GPTConfig(**TINY)).build(seed=4, dtype=t) for t in ("float32", "float64"))
    for one, other in zip(single.parameters().values(), double.parameters().values(), strict=True):
        assert one.value.base is not None and one.value.ctypes.data % 64 == 0
        np.testing.assert_array_equal(one.value, other.value.astype(np.float32))


def test_initial_weights_have_the_published_deviations():
    config = GPTConfig(vocabulary_size=500, context_length=64, layers=8, heads=2, width=128)
    parameters = GPT(config).build().parameters()
    assert parameters["embedding.table"].value.std() == pytest.approx(0.02, rel=0.02)
    residual = parameters["blocks.3.feed_forward.output.weight"].value
    assert residual.std() == pytest.approx(0.02 / 4, rel=0.02)
    assert not parameters["blocks.0.norm1.bias"].value.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "a width of 8 cannot be divided into 3 heads of equal width"),
        ({"layers": 0}, "layers is 0; expected at least 1"),
        ({"activation": "swish"}, "activation is 'swish'; expected one of gelu_exact"),
        ({"positions": "rotary"}, "positions is 'rotary'; expected one of learned"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"feed_forward_width": 0}, "feed_forward_width is 0"),
    ],
)
def test_impossible_configurations(change, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**TINY, **change})


def test_bad_batches():
    model = GPT(GPTConfig(**TINY)).build()
    with pytest.raises(ValueError, match="9 tokens is longer than the model's 8 positions"):
        model(batch(length=9))
    with pytest.raises(ValueError, match=r"id 11 at index \(0, 1\) is out of range; expected 0 to 10"):
        model({"ids": np.array([[1, 11]])})
    with pytest.raises(ValueError, match=r"id -1 at index \(0, 0\)"):
        model({"ids": np.array([[-1, 3]])})
    with pytest.raises(RuntimeError, match=r"call build\(\)"):
        GPT(GPTConfig(**TINY))(batch())


def test_a_forward_that_fails_leaves_the_cache_as_it_was():
    model = GPT(GPTConfig(**TINY)).build(dtype="float64")
    ids = batch(length=8)["ids"]
    cache = model.cache(3)
    with pytest.raises(RuntimeError, match=r"inference\(\)"):
        model({"ids": ids[:, :3]}, cache=cache)
    with inference():
        with pytest.raises(ValueError, match="out of range"):
            model({"ids": ids[:, :3] + 1000}, cache=cache)
        expected, _ = model({"ids": ids})
        parts = [model({"ids": ids[:, a:b]}, cache=cache)[0] for a, b in [(0, 3), (3, 8)]]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-12)


def test_recomputed_blocks_decode_with_a_cache():
    model = GPT(GPTConfig(**TINY))
    model.blocks = [recompute(block) for block in model.blocks]
    model.build(dtype="float64")
    ids = batch(length=8)["ids"]
    with inference():
        expected, _ = model({"ids": ids})
        cache = model.cache(3)
        parts = [model({"ids": ids[:, a:b]}, cache=cache)[0] for a, b in [(0, 5), (5, 8)]]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, rtol=0, atol=1e-12)


def test_one_row_of_positions_serves_all_rows():
    layer = SelfAttention(16, 2).build(dtype="float64")
    x = np.random.default_rng(0).normal(size=(2, 3, 16))
    expected, _ = layer(x, causal_mask(3))
    for positions in (np.arange(3), np.arange(3)[None]):
        held = KeyValues(np, 2, 4, 2, 8, "float64")
        with inference():
            y, _ = layer(x, causal_mask(3), cache=held, positions=positions)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
