"""Training: step by step what PyTorch does, and a run that stands up to accidents."""

import math

import numpy as np
import pytest

from minitransformer.batches import windows
from minitransformer.errors import DivergedError, InputError
from minitransformer.evaluation import mean_loss
from minitransformer.models import GPT, GPTConfig
from minitransformer.optimisers import AdamW, clip_factor, global_norm, warmup_cosine
from minitransformer.parameters import Layer, Parameter
from minitransformer.training import TrainingArguments, training_steps, update

RANDOM = np.random.default_rng(0)
STEPS = 10


@pytest.mark.parametrize(
    "shape",
    [{"bias": False, "activation": "gelu_exact"}, {"bias": True, "activation": "gelu_tanh"}],
    ids=["nanogpt", "gpt2"],
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ten_steps_equal_pytorch(torch, shape, dtype):
    """From the same weights on the same batches: gradients, losses, and every parameter at the end."""
    from bench import torch_gpt

    config = GPTConfig(vocabulary_size=65, context_length=16, layers=2, heads=4, width=32, **shape)
    arguments = TrainingArguments(
        max_steps=STEPS, warmup_steps=2, weight_decay=0.1, max_grad_norm=1.0, learning_rate=1e-2
    )
    model = GPT(config).build(seed=1, dtype=dtype)
    give_gains_and_biases_random_values(model)
    tensors = torch_gpt.tensors_like(model, getattr(torch, dtype))
    ours, theirs = AdamW(model, (0.9, 0.99), weight_decay=0.1), torch_gpt.adamw(tensors, arguments)
    tolerance = 1e-10 if dtype == "float64" else 1e-6

    for number in range(STEPS):
        batch = windows(model, RANDOM.integers(0, 65, 100), RANDOM.integers(0, 80, 4), 16)
        ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])
        rate = warmup_cosine(
            number, learning_rate=1e-2, min_learning_rate=1e-4, warmup_steps=2, max_steps=STEPS
        )
        loss, _ = update(model, ours, batch, rate, arguments.max_grad_norm)
        if number == 0 and dtype == "float64":
            compare_first_gradients(torch, torch_gpt, tensors, config, ids, targets, model)
        their_loss = torch_gpt.update(tensors, config, theirs, ids, targets, rate, arguments.max_grad_norm)
        assert loss == pytest.approx(their_loss, rel=0, abs=tolerance)
    if dtype == "float64":
        for path, parameter in model.parameters().items():
            theirs_now = tensors[path].detach().numpy()
            np.testing.assert_allclose(parameter.value, theirs_now, rtol=0, atol=1e-10, err_msg=path)


def compare_first_gradients(torch, torch_gpt, tensors, config, ids, targets, model):
    loss = torch_gpt.mean_loss(tensors, config, ids, targets)
    gradients = torch.autograd.grad(loss, list(tensors.values()))
    whole = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    for (path, parameter), gradient in zip(model.parameters().items(), gradients, strict=True):
        difference = np.linalg.norm(parameter.gradient - gradient.numpy())
        assert difference / max(float(gradient.norm()), 1e-3 * whole) <= 1e-10, path


def give_gains_and_biases_random_values(model):
    """At their initial values a missing decay or a misplaced gain would not show."""
    for parameter in model.parameters().values():
        if len(parameter.shape) == 1:
            parameter.value[...] = RANDOM.normal(1, 0.3, parameter.shape)


def test_a_missing_decay_would_be_seen(torch):
    """The float32 tolerance above is tight enough for the mistake that it is meant to catch."""
    losses = {}
    for decay in (0.1, 0.0):
        random = np.random.default_rng(2)
        config = GPTConfig(65, 16, 2, 4, 32)
        model = GPT(config).build(seed=1)
        optimiser = AdamW(model, (0.9, 0.99), weight_decay=decay)
        batch = windows(model, random.integers(0, 65, 100), random.integers(0, 80, 4), 16)
        losses[decay] = [update(model, optimiser, batch, 1e-2)[0] for _ in range(STEPS)][-1]
    assert abs(losses[0.1] - losses[0.0]) > 4e-6


class Vector(Layer):
    def __init__(self, values):
        self.value = Parameter((len(values),), lambda random, shape: np.array(values), decays=True)


def test_adamw_finds_the_published_minimum():
    """BERT's unit test of its optimiser: a quadratic, 100 steps at 0.2."""
    target = np.array([0.4, 0.2, -0.5])
    model = Vector([0.1, -0.2, -0.1]).build(dtype="float64")
    optimiser = AdamW(model, weight_decay=0.0)
    for _ in range(100):
        model.value.gradient[...] = 2 * (model.value.value - target) / 3
        optimiser.step(0.2)
    np.testing.assert_allclose(model.value.value, target, atol=1e-2)


def test_clipping():
    model = Vector([3.0, 4.0]).build(dtype="float64")
    model.value.gradient[...] = [3, 4]
    assert global_norm(model) == 5
    assert clip_factor(5.0, 1.0) == pytest.approx(0.2)
    assert clip_factor(0.5, 1.0) == 1
    assert clip_factor(5.0, 0) == 1


def test_schedule_is_nanogpts():
    rates = [
        warmup_cosine(step, learning_rate=1.0, min_learning_rate=0.1, warmup_steps=4, max_steps=24)
        for step in range(30)
    ]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1
    assert rates[14] == pytest.approx(0.55)
    assert rates[24:] == pytest.approx([0.1] * 6)


def test_windows_shift_the_targets_by_one():
    model = GPT(GPTConfig(10, 4, 1, 1, 4)).build()
    batch = windows(model, np.arange(10), np.array([0, 5]), 4)
    assert batch["ids"].tolist() == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert batch["targets"].tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert batch["counts"] == {"tokens": 8}


def test_windows_reach_the_last_token():
    model = GPT(GPTConfig(6, 4, 1, 1, 4)).build()
    arguments = TrainingArguments(max_steps=1, per_device_train_batch_size=64)
    seen = []
    model.loss = lambda batch, key: (seen.append(batch), GPT.loss(model, batch, key))[1]
    list(training_steps(model, np.arange(6), arguments))
    assert set(seen[0]["targets"].ravel().tolist()) == {1, 2, 3, 4, 5}


def test_the_model_learns_a_sentence():
    tokens = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 4, np.uint8).astype(np.int64)
    model = GPT(GPTConfig(128, 16, 1, 2, 32)).build(seed=0)
    steps = list(training_steps(model, tokens, TrainingArguments(max_steps=150, learning_rate=1e-2)))
    assert steps[0].loss > 4
    assert steps[-1].loss < 0.4
    assert mean_loss(model, tokens, np.array([0, 16]), 16) < 0.4


def test_same_seed_same_run():
    def train():
        model = GPT(GPTConfig(16, 8, 1, 1, 8, dropout=0.2)).build(seed=0)
        arguments = TrainingArguments(max_steps=5)
        return [step.loss for step in training_steps(model, np.arange(100) % 16, arguments)], model

    (first, model), (second, other) = train(), train()
    assert first == second
    np.testing.assert_array_equal(model.flat.values, other.flat.values)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_stops_before_the_update(bad):
    model = GPT(GPTConfig(16, 8, 1, 1, 8)).build(seed=0)
    steps = training_steps(model, np.arange(100) % 16, TrainingArguments(max_steps=5))
    next(steps)
    next(steps)
    model.norm.gain.value[0] = bad
    kept = model.flat.values.copy()
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(DivergedError, match=r"diverged at step 3: the loss is (nan|inf)"),
    ):
        next(steps)
    np.testing.assert_array_equal(model.flat.values, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a finite number of at least 0"),
        ({"eval_steps": 0}, "eval_steps is 0; expected a finite number of at least 1"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; expected less than 1"),
    ],
)
def test_impossible_arguments(change, message):
    with pytest.raises(InputError, match=message):
        TrainingArguments(**change)
