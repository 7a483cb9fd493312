"""Objects travel: copied or sent to another process, models and what belongs to them stay what they are."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from common.blocks import pre_norm_block
from common.tiny_runs import sequences, tiny_model, windows

from minitransformer import errors, layers
from minitransformer.data import character_tokenizer
from minitransformer.data.datasets import TokenWindows
from minitransformer.data.token_file import open_tokens
from minitransformer.errors import InputError
from minitransformer.functional import Key, causal_mask
from minitransformer.layers import Linear, recompute
from minitransformer.models import GPT, GPTConfig
from minitransformer.parameters import Layer, Parameter, normal
from minitransformer.recipes import load_recipe
from minitransformer.training import TrainingArguments, train_step
from minitransformer.training.optimisers import AdamW

RANDOM = np.random.default_rng(0)


def sent(thing):
    return pickle.loads(pickle.dumps(thing))


COPIES = {"copied": copy.deepcopy, "sent": sent}
every_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


class Tied(Layer):
    """A table under two names, lists, dictionaries, and a layer that recomputes."""

    def __init__(self):
        self.table = Parameter((5, 4), normal(0.5))
        self.parts = {"again": self.table, "list": [Linear(4, 4), (Linear(4, 3, bias=False),)]}
        self.block = recompute(pre_norm_block(4, 2, 8))


def addresses(model):
    return [
        (path, parameter.value.ctypes.data - model.flat.values.ctypes.data)
        for path, parameter in model.parameters().items()
    ]


@every_copy
@pytest.mark.parametrize("make", [Tied, lambda: GPT(GPTConfig(7, 5, 2, 2, 8))], ids=["tied", "gpt"])
def test_a_copy_has_one_buffer_of_its_own(copied, make):
    model = make().build(seed=3)
    model.flat.gradients[...] = RANDOM.normal(size=model.flat.gradients.shape)
    twin = copied(model)
    assert type(twin) is type(model)
    assert addresses(twin) == addresses(model)
    assert twin.flat.runs == model.flat.runs
    for ours, theirs in zip(twin.flat[:2], model.flat[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not np.shares_memory(ours, theirs)
        assert ours.ctypes.data % 64 == 0 and ours.dtype == theirs.dtype
    for parameter in twin.parameters().values():
        assert parameter.root is twin
        assert np.shares_memory(parameter.value, twin.flat.values)
        assert np.shares_memory(parameter.gradient, twin.flat.gradients)


@every_copy
def test_a_shared_parameter_stays_shared(copied):
    twin = copied(Tied().build())
    assert twin.table is twin.parts["again"]
    assert twin.parameter_count() == Tied().parameter_count()


@every_copy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_copy_trains_alone_and_to_the_same_bits(copied, dtype):
    def trained(model):
        optimiser = AdamW(model)
        for number in range(3):
            train_step(model, optimiser, [windows().collate([number, 40])], 1e-2, key=Key(1, number))
        return model.flat.values

    model = tiny_model(dtype)
    twin, before = copied(model), model.flat.values.copy()
    first = trained(twin)
    np.testing.assert_array_equal(model.flat.values, before)
    np.testing.assert_array_equal(trained(model), first)


@every_copy
def test_an_unbuilt_model_is_built_alike_wherever_it_comes_to(copied):
    model = GPT(GPTConfig(7, 5, 2, 2, 8))
    np.testing.assert_array_equal(copied(model).build(seed=4).flat.values, model.build(seed=4).flat.values)


@every_copy
def test_a_recomputed_layer_goes_with_its_copy(copied):
    model = Tied().build()
    twin = copied(model)
    twin.flat.values[...] = 0
    x = np.ones((1, 2, 4), np.float32)
    y, _ = twin.block(x, mask=causal_mask(2))
    np.testing.assert_array_equal(y, x)
    assert twin.block.layer.norm1.gain.root is twin


def test_a_shallow_copy_is_the_same_model_under_another_name():
    model = tiny_model()
    twin = copy.copy(model)
    assert twin.flat is model.flat
    assert twin.parameters() == model.parameters()


def test_a_copied_part_keeps_the_rest_of_its_own_copy():
    model = tiny_model()
    part = copy.deepcopy(model.blocks[0])
    part.norm1.gain.value += 1
    assert (model.blocks[0].norm1.gain.value == 1).all()
    assert part.norm1.gain.root is not model


def mean_loss(model, batch):
    totals, backward = model.loss(batch)
    count = model.count_targets(batch)["tokens"]
    backward({"tokens": 1 / count})
    return float(totals["tokens"]) / count, model.flat.gradients


def test_a_pool_of_spawned_processes():
    model, datasets = tiny_model(), [windows(), sequences()]
    batches = [dataset.collate([0, 3, 5]) for dataset in datasets]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        there = list(pool.map(mean_loss, [model, model], batches))
    for batch, (loss, gradients) in zip(batches, there, strict=True):
        model.zero_gradients()
        expected, expected_gradients = mean_loss(model, batch)
        assert loss == expected
        np.testing.assert_array_equal(gradients, expected_gradients)
    assert np.count_nonzero(gradients)


@every_copy
@pytest.mark.parametrize(
    "settings", [GPTConfig(7, layers=3), TrainingArguments(max_steps=3), load_recipe("sort")], ids=str
)
def test_settings_travel(copied, settings):
    assert copied(settings) == settings


@every_copy
@pytest.mark.parametrize("dataset", [windows(), sequences()], ids=["windows", "sequences"])
def test_datasets_travel(copied, dataset):
    twin = copied(dataset)
    np.testing.assert_array_equal(twin.training_places(3, 4, 1), dataset.training_places(3, 4, 1))
    for ours, theirs in zip(twin.collate([1, 2]).values(), dataset.collate([1, 2]).values(), strict=True):
        np.testing.assert_equal(ours, theirs)


@every_copy
def test_tokens_in_a_mapped_file_travel(copied, tmp_path):
    np.save(tmp_path / "tokens.npy", np.arange(100, dtype=np.uint8))
    dataset = TokenWindows(open_tokens(tmp_path / "tokens.npy"), 8)
    np.testing.assert_equal(copied(dataset).collate([5, 60]), dataset.collate([5, 60]))


@every_copy
def test_a_tokenizer_travels_beside_its_model(copied):
    tokenizer = character_tokenizer("abc")
    model, twin = copied((tiny_model(), tokenizer))
    assert model.parameter_count()
    assert twin.encode("cab").ids == tokenizer.encode("cab").ids


@every_copy
@pytest.mark.parametrize(
    "error",
    [errors.Stopped(2, "runs/a"), errors.UnknownSettingError("no"), errors.DivergedError("at step 3")],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel(copied, error):
    twin = copied(error)
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert vars(twin) == vars(error)


def test_assignments_to_a_parameter_are_written_into_the_buffers():
    model = Linear(3, 2).build()
    before = model.weight.value.copy()
    model.weight.value += 1
    model.weight.gradient += np.full((3, 2), 2.0)
    model.weight.gradient *= 2
    model.bias.gradient = np.array([5.0, 6.0])
    model.bias.value = [1, 2]
    np.testing.assert_array_equal(model.weight.value, before + 1)
    np.testing.assert_array_equal(model.flat.gradients[model.weight.part], np.full(6, 4.0))
    np.testing.assert_array_equal(model.flat.gradients[model.bias.part], [5, 6])
    np.testing.assert_array_equal(model.flat.values[model.bias.part], [1, 2])


@pytest.mark.parametrize("array", [0.0, [1.0, 2.0], np.ones((2, 3))], ids=["number", "row", "transposed"])
def test_an_assignment_of_another_shape_is_refused(array):
    model = Linear(3, 2).build()
    message = r"the gradient of a parameter of shape \(3, 2\) was assigned an array of shape \("
    with pytest.raises(InputError, match=message):
        model.weight.gradient = array
    with pytest.raises(InputError, match=message.replace("gradient", "value")):
        model.weight.value = array
    with pytest.raises(RuntimeError, match=r"call build\(\)"):
        Linear(3, 2).weight.value = np.zeros((3, 2))


GPT_TREE = """\
GPT
  embedding: Embedding                   table 7 × 8                  56
  positions: LearnedPositions            table 5 × 8                  40
  dropout: Dropout(rate=0.0)
  blocks: 2 × PreNormBlock                                       2 × 872
    norm1: LayerNorm(eps=1e-05)          gain 8, bias 8               16
    attention: SelfAttention(heads=2, kv_heads=2, head_width=4, dropout=0.0)
      query_key_value: Linear            weight 8 × 24, bias 24      216
      output: Linear                     weight 8 × 8, bias 8         72
    norm2: LayerNorm(eps=1e-05)          gain 8, bias 8               16
    feed_forward: FeedForward
      hidden.0: LinearGelu(form='tanh')  weight 8 × 32, bias 32      288
      output: Linear                     weight 32 × 8, bias 8       264
    dropout: Dropout(rate=0.0)
  norm: LayerNorm(eps=1e-05)             gain 8, bias 8               16
1,856 parameters"""
TIED_TREE = """\
Tied                                      table 5 × 4, parts.again = table  20
  parts.list.0: Linear                    weight 4 × 4, bias 4              20
  parts.list.1.0: Linear                  weight 4 × 3                      12
  block: Recomputed
"""


def test_a_printed_model_is_a_tree_of_shapes_and_counts(capsys):
    model = GPT(GPTConfig(7, 5, 2, 2, 8))
    print(model)
    print(model.build())
    assert capsys.readouterr().out == f"{GPT_TREE}, not built yet\n{GPT_TREE}\n"
    assert model.parameter_count() == 1856
    assert repr(model) == "GPT(1,856 parameters)"
    assert str(model.blocks[1].norm1) == "LayerNorm(eps=1e-05)  gain 8, bias 8  16\n16 parameters"
    assert str(Tied()).startswith(TIED_TREE)
    assert str(layers.Relu()) == "Relu\n0 parameters"


def test_blocks_that_differ_are_shown_apart():
    class Stack(Layer):
        def __init__(self):
            self.blocks = [Linear(2, 2), Linear(2, 2), Linear(2, 3), Linear(2, 2)]
            self.blocks[3].weight = self.blocks[0].weight

    assert str(Stack()).split("\n") == [
        "Stack",
        "  blocks: 2 × Linear  weight 2 × 2, bias 2              2 × 6",
        "  blocks.2: Linear    weight 2 × 3, bias 3                  9",
        "  blocks.3: Linear    weight = blocks.0.weight, bias 2      2",
        "23 parameters, not built yet",
    ]
