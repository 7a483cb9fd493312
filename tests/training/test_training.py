"""The step: what PyTorch does, the same from one batch or from many, and nothing when the loss diverges."""

import inspect
import math

import numpy as np
import pytest
from common.mutations import mutated, named, run
from common.tiny_runs import sequences, tiny_model, windows

from minitransformer.data.datasets import TokenWindows
from minitransformer.errors import DivergedError, InputError
from minitransformer.evaluation.scores import whole_loss
from minitransformer.functional import Key
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import Trainer, TrainingArguments, train_step
from minitransformer.training.optimisers import SGD, AdamW

RANDOM = np.random.default_rng(0)
STEPS = 10
STEP_SOURCE = inspect.getsource(inspect.getmodule(train_step))


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
        max_steps=STEPS,
        learning_rate=1e-2,
        min_learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        weight_decay=0.1,
        adam_beta2=0.99,
    )
    model = GPT(config).build(seed=1, dtype=dtype)
    give_gains_and_biases_random_values(model)
    tensors = torch_gpt.tensors_like(model, getattr(torch, dtype))
    ours, theirs = AdamW(model, (0.9, 0.99), weight_decay=0.1), torch_gpt.adamw(tensors, arguments)
    tolerance = 1e-10 if dtype == "float64" else 1e-6

    for number in range(STEPS):
        batch = random_batch()
        ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])
        rate, limit = arguments.learning_rate_at(number, STEPS), arguments.max_grad_norm
        loss = train_step(model, ours, [batch], rate, limit).loss
        if number == 0 and dtype == "float64":
            compare_first_gradients(torch, torch_gpt, tensors, config, ids, targets, model)
        their_loss = torch_gpt.train_step(tensors, config, theirs, ids, targets, rate, limit)
        assert loss == pytest.approx(their_loss, rel=0, abs=tolerance)
    if dtype == "float64":
        for path, parameter in model.parameters().items():
            theirs_now = tensors[path].detach().numpy()
            np.testing.assert_allclose(parameter.value, theirs_now, rtol=0, atol=1e-10, err_msg=path)


def random_batch():
    """Return four windows of random tokens."""
    return TokenWindows(RANDOM.integers(0, 65, 100), 16).collate(RANDOM.integers(0, 80, 4))


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


def test_a_missing_decay_would_be_seen():
    """The float32 tolerance above is tight enough for the mistake that it is meant to catch."""
    batch, losses = random_batch(), {}
    for decay in (0.1, 0.0):
        model = GPT(GPTConfig(65, 16, 2, 4, 32)).build(seed=1)
        optimiser = AdamW(model, (0.9, 0.99), weight_decay=decay)
        losses[decay] = [train_step(model, optimiser, [batch], 1e-2).loss for _ in range(STEPS)][-1]
    assert abs(losses[0.1] - losses[0.0]) > 4e-6


# --- many small batches are the big one


def check_accumulation(train_step, dataset):
    """Compare 4 · 8 examples with 32: loss, norm, count, and every gradient to 1e-12."""
    model = tiny_model("float64", dropout=0.0)
    model.flat.values[...] = np.random.default_rng(3).normal(0, 0.3, model.flat.values.shape)
    places = dataset.training_places(0, 32, seed=0)

    def result(rows):
        batches = [dataset.collate(places[first : first + rows]) for first in range(0, 32, rows)]
        done = train_step(model, SGD(model), batches, 0.0)
        return done, model.flat.gradients.copy()

    (whole, gradients), (parts, added) = result(32), result(8)
    assert whole.counts == parts.counts
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.gradient_norm == pytest.approx(np.linalg.norm(gradients), rel=1e-12)
    np.testing.assert_allclose(added, gradients, rtol=0, atol=1e-12 * np.abs(gradients).max())


@pytest.mark.parametrize("dataset", [windows, sequences])
def test_four_batches_of_eight_are_one_of_thirty_two(dataset):
    check_accumulation(train_step, dataset())


# mistake, where, old, new
MISTAKES = [
    (
        "mean of means",
        "of unequal counts",
        "backward(weights)",
        "backward({name: 1 / model.count_targets(batch)[name] / len(micro_batches) for name in weights})",
    ),
    (
        "first batch counted alone",
        "of all",
        "for batch in micro_batches:\n    counts.update(model.count_targets(batch))",
        "for batch in micro_batches[:1]:\n    counts.update(model.count_targets(batch))",
    ),
    ("last batch only", "gradient", "backward(weights)", "model.zero_gradients(); backward(weights)"),
    ("last batch only", "loss", "totals[name] += float(total)", "totals[name] = float(total)"),
    ("no norm", "of all", "float(global_norm(model))", "0.0"),
]


@named(MISTAKES)
def test_a_mistake_in_accumulation_is_caught(row):
    *_, old, new = row
    wrong = run(mutated(STEP_SOURCE, old, new, "train_step"), inspect.getmodule(train_step), {})
    with pytest.raises(AssertionError):
        check_accumulation(wrong["train_step"], sequences())


def test_every_small_batch_has_its_own_dropout():
    model, batch = tiny_model(), windows().collate(np.arange(8))

    def loss(*batches):
        return train_step(model, SGD(model), batches, 0.0, key=Key(5)).loss

    assert loss(batch) == loss(batch)
    assert abs(loss(batch, batch) - loss(batch)) > 1e-4


# --- a model that learns, or diverges


def test_the_model_learns_a_sentence(tmp_path):
    tokens = np.frombuffer(b"the quick brown fox jumps over the lazy dog. " * 4, np.uint8).astype(np.int64)
    model, dataset = GPT(GPTConfig(128, 16, 1, 2, 32)).build(seed=0), TokenWindows(tokens, 16)
    arguments = TrainingArguments(
        str(tmp_path / "run"), max_steps=150, learning_rate=1e-2, logging_steps=1, save_steps=150
    )
    trainer = Trainer(model, arguments, dataset, callbacks=[])
    trainer.train()
    assert trainer.history[0]["train_loss"] > 4
    assert trainer.history[-1]["train_loss"] < 0.4
    assert whole_loss(model, dataset) < 0.4


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_stops_before_the_update(bad):
    model, batch = tiny_model(), windows().collate(np.arange(8))
    optimiser = AdamW(model)
    train_step(model, optimiser, [batch], 1e-2)
    model.norm.gain.value[0] = bad
    kept = [part.copy() for part in (model.flat.values, optimiser.first_moment, optimiser.second_moment)]
    with pytest.raises(DivergedError, match=r"diverged at step 2: the loss is (nan|inf)"):
        train_step(model, optimiser, [batch], 1e-2)
    now = model.flat.values, optimiser.first_moment, optimiser.second_moment
    for before, after in zip(kept, now, strict=True):
        np.testing.assert_array_equal(before, after)
    assert optimiser.steps == 1


def test_a_gradient_that_overflows_stops_before_the_update():
    model, batch = tiny_model(), windows().collate(np.arange(8))
    backward_of = model.loss

    def loss(batch, key):
        totals, backward = backward_of(batch, key)
        return totals, lambda weights: backward(dict.fromkeys(weights, 1e38))

    model.loss, kept = loss, model.flat.values.copy()
    with pytest.raises(DivergedError, match="diverged at step 1: the gradient norm is inf"):
        train_step(model, SGD(model), [batch], 1e-2, max_grad_norm=1.0)
    np.testing.assert_array_equal(model.flat.values, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0; expected a finite number of at least 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; expected a value of type float"),
        ({"learning_rate": 1e-3, "min_learning_rate": 1e-2}, "min_learning_rate is 0.01, above"),
        ({"eval_steps": 0}, "eval_steps is 0; expected a finite number of at least 1"),
        ({"save_total_limit": 0}, "save_total_limit is 0; expected a finite number of at least 1"),
        ({"max_steps": -2}, "max_steps is -2; expected a finite number of at least -1"),
        ({"max_steps": 10.0}, "max_steps is 10.0; expected a value of type int"),
        ({"num_train_epochs": math.inf}, "num_train_epochs is inf"),
        ({"adam_beta2": 1.0}, "adam_beta2 is 1.0; expected less than 1"),
        ({"adam_epsilon": 0.0}, "adam_epsilon is 0; expected a positive number"),
        ({"lr_scheduler_type": "step"}, "lr_scheduler_type is 'step'; expected one of constant, linear"),
        ({"seed": 2**32}, r"seed is 4294967296; expected less than 2\*\*32"),
        ({"load_best_model_at_end": 1}, "load_best_model_at_end is 1; expected a value of type bool"),
    ],
)
def test_impossible_arguments(change, message):
    with pytest.raises(InputError, match=message):
        TrainingArguments(**change)
