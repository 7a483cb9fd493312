"""A GPT for decoding: the results of the model that it was made from, but for the rounding of weights."""

import numpy as np
import pytest

from minitransformer import dispatch, generate, inference, reference, save_model
from minitransformer.functional.packed_linear import PACKED_TYPES
from minitransformer.models import GPT, GPTConfig
from minitransformer.training.optimisers import SGD, AdamW

SHAPE = {"vocabulary_size": 37, "context_length": 24, "layers": 2, "heads": 2, "width": 40}
VARIANTS = [
    {},
    {"bias": False, "activation": "gelu_exact"},
    {"activation": "relu", "positions": "sinusoidal"},
]
RANDOM = np.random.default_rng(0)


def draw(**variant):
    """Return a GPT whose logits are far apart."""
    model = GPT(GPTConfig(**SHAPE, **variant)).build(seed=1)
    model.flat.values[...] += np.random.default_rng(1).normal(0, 0.2, model.flat.values.shape)
    return model


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def model(request):
    return draw(**request.param)


def logits_of(model, batch, **settings):
    with inference():
        return model(batch, **settings)[0]


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# bfloat16 rounds weights by 2⁻⁹ at most, int8 by 1/254 of a column's largest, about 3 deviations: 3/254/√3 of
# a weight on average. Both grow through the layers.
TOLERANCES = {"float32": 1e-5, "bfloat16": 10 * 2.0**-9, "int8": 10 * 3 / 254}


@pytest.mark.parametrize("dtype", PACKED_TYPES)
def test_the_logits_are_those_of_the_model(model, dtype):
    ids = RANDOM.integers(0, 37, (3, 24))
    before = model.flat.values.copy()
    expected, found = logits_of(model, ids), logits_of(model.for_decoding(dtype), ids)
    assert found.dtype == np.float32
    error = relative_error(found, expected)
    assert error < TOLERANCES[dtype]
    assert dtype == "float32" or error > 2.0**-12  # the weights were rounded
    np.testing.assert_array_equal(model.flat.values, before)


@pytest.mark.parametrize("dtype", PACKED_TYPES)
def test_cached_logits_equal_those_of_the_whole_and_padding_changes_nothing(model, dtype):
    decoding = model.for_decoding(dtype)
    ids, lengths = RANDOM.integers(0, 37, (2, 12)), np.array([9, 5])
    cache = decoding.cache(2)
    found = [logits_of(decoding, {"ids": ids[:, :9], "lengths": lengths}, cache=cache)]
    found += [logits_of(decoding, ids[:, 9 + step : 10 + step], cache=cache) for step in range(3)]
    for row, length in enumerate(lengths):
        real = np.concatenate((ids[row, :length], ids[row, 9:]))
        expected = logits_of(decoding, real[None])[0]
        ours = np.concatenate((found[0][row, :length], *(step[row] for step in found[1:])))
        assert relative_error(ours, expected) < 1e-5


def test_greedy_tokens_are_those_of_the_model(model):
    decoding = model.for_decoding()
    expected = list(generate(model, [1, 2, 3], 40, temperature=0))
    assert list(generate(decoding, [1, 2, 3], 40, temperature=0)) == expected
    assert list(generate(decoding, [1, 2, 3], 40, temperature=0, use_cache=False)) == expected
    drawn = {"temperature": 2.0, "top_k": 20, "seed": 4}
    expected = list(generate(model, [5], 30, **drawn))
    assert list(generate(decoding, [5], 30, **drawn)) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("dtype", PACKED_TYPES)
def test_kernels_and_definitions_agree(dtype):
    decoding, ids = draw().for_decoding(dtype), RANDOM.integers(0, 37, (2, 10))
    found = logits_of(decoding, ids)
    with reference():
        assert relative_error(found, logits_of(decoding, ids)) < 1e-5


def test_it_packs_every_product_and_copies_nothing_else():
    model, seen = draw(), []
    decoding = model.for_decoding("int8")

    class Watcher:
        def saw_forward(self, name, path, arrays, settings, y, saved):
            seen.append((name, path))

    with dispatch.watching(Watcher()):
        logits_of(decoding, [[1, 2]])
    packed = [path for name, path in seen if name == "packed_linear"]
    assert not {"linear", "linear_gelu"} & {name for name, _ in seen}
    assert len(packed) == len(set(packed)) == 4 * 2 + 1
    parameters = model.parameters()
    for path, parameter in decoding.parameters().items():
        assert parameter is parameters[path]


def test_packed_weights_stay_what_they_were():
    model, ids = draw(), [[1, 2, 3]]
    decoding = model.for_decoding()
    expected = logits_of(decoding, ids)
    model.blocks[0].attention.output.weight.value *= 2
    np.testing.assert_array_equal(logits_of(decoding, ids), expected)


def test_it_is_read_only(tmp_path):
    model = draw()
    decoding = model.for_decoding("int8")
    for optimiser in (AdamW, SGD):
        with pytest.raises(RuntimeError, match=r"a DecodingGPT is read-only: .*; train the model"):
            optimiser(decoding)
    with pytest.raises(
        RuntimeError, match=r"a DecodingGPT is read-only: .*; save the model that it was made"
    ):
        save_model(decoding, tmp_path / "model")
    assert not [*tmp_path.iterdir()]
    assert decoding.parameter_count() == model.parameter_count()
    assert repr(decoding) == f"DecodingGPT({model.parameter_count():,} parameters)"
    assert str(decoding).endswith(f"\n{model.parameter_count():,} parameters")


def test_it_is_not_trained():
    decoding = draw().for_decoding()
    batch = {"ids": np.array([[1, 2]]), "targets": np.array([[2, 3]])}
    with pytest.raises(
        RuntimeError, match="packed weights have no backward: call a model for decoding under"
    ):
        decoding(batch["ids"])
    with pytest.raises(
        RuntimeError, match="a model for decoding has no loss: call that of the model that it"
    ):
        decoding.loss(batch)
    with inference():
        logits, backward = decoding(batch["ids"])
    with pytest.raises(RuntimeError, match="packed weights have no backward"):
        backward(logits)
    with pytest.raises(RuntimeError, match="these weights are packed"):
        decoding.for_decoding("int8")
    with pytest.raises(ValueError, match="dtype is 'float16'; expected one of float32, bfloat16, int8"):
        draw().for_decoding("float16")
    with pytest.raises(RuntimeError, match="call build"):
        GPT(GPTConfig(**SHAPE)).for_decoding()
