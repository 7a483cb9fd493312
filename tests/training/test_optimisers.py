"""Optimisers, clipping and schedules: what PyTorch, transformers and the papers say, and planted mistakes."""

import inspect
import math
from types import SimpleNamespace

import numpy as np
import pytest
from common.mutations import mutated, named, run

from minitransformer import dispatch
from minitransformer.errors import InputError
from minitransformer.functional import optimisation
from minitransformer.parameters import Layer, Parameter
from minitransformer.training import TrainingArguments, optimisers, schedules
from minitransformer.training.optimisers import AdamW, clip_factor, global_norm, make_optimiser
from minitransformer.training.schedules import SCHEDULES, scheduled_learning_rate

RANDOM = np.random.default_rng(0)
STEPS = 12

# the class and its settings, named the same by PyTorch
ROWS = {
    "adamw": ("AdamW", {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}),
    "adamw by default": ("AdamW", {}),
    "sgd": ("SGD", {}),
    "momentum": ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
}


class Weights(Layer):
    """A table, which decays, of more than one chunk, and a gain, which does not."""

    def __init__(self, random):
        self.gain = Parameter((7,), lambda _, shape: random.normal(1, 0.3, shape))
        self.table = Parameter((3, optimisation.CHUNK // 2), lambda _, shape: random.normal(0, 1, shape))


class Vector(Layer):
    def __init__(self, values):
        self.value = Parameter((len(values),), lambda random, shape: np.array(values), decays=True)


def check_against_torch(torch, ours, row):
    """Compare the optimisers of ``ours`` with PyTorch's, after steps of changing rate and scale."""
    name, settings = ROWS[row]
    random = np.random.default_rng(0)
    model = Weights(random).build(dtype="float64")
    optimiser = getattr(ours, name)(model, **settings)
    table, gain = (torch.tensor(part.value, requires_grad=True) for part in (model.table, model.gain))
    groups = [{"params": [table]}, {"params": [gain], "weight_decay": 0.0}]
    theirs = getattr(torch.optim, name)(groups, lr=1.0, **settings)
    for step in range(STEPS):
        rate, scale = 0.1 / (step + 1), 1.0 if step % 2 else 0.3
        for part, tensor in ((model.table, table), (model.gain, gain)):
            part.gradient[...] = random.normal(0, 1, part.shape)
            tensor.grad = torch.tensor(part.gradient * scale)
        for group in theirs.param_groups:
            group["lr"] = rate
        optimiser.step(rate, scale)
        theirs.step()
    for part, tensor in ((model.table, table), (model.gain, gain)):
        np.testing.assert_allclose(part.value, tensor.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("row", ROWS)
def test_twelve_steps_equal_pytorch(torch, row):
    check_against_torch(torch, optimisers, row)


# row, mistake, the class it is in, old, new
MISTAKES = [
    ("adamw", "gains decay", "Optimiser", "run.decays", "True"),
    ("adamw", "a run forgotten", "Optimiser", "self.flat.runs", "self.flat.runs[:1]"),
    ("adamw", "decay forgotten", "AdamW", "decay", "0.0"),
    ("adamw", "scale forgotten", "AdamW", "gradient_scale", "1.0"),
    ("adamw", "step not counted", "Optimiser", "self.steps += 1", "self.steps = 1"),
    ("adamw by default", "another default", "AdamW", "0.01", "0.0"),
    (
        "sgd",
        "scale forgotten",
        "SGD",
        "gradients[chunk] * gradient_scale",
        "gradients[chunk]",
    ),
    ("sgd", "the wrong way", "SGD", "w -= learning_rate * m", "w += learning_rate * m"),
    ("momentum", "damped", "SGD", "gradient_scale", "gradient_scale * (1 - self.momentum)"),
    ("momentum", "decay forgotten", "SGD", "decay * w", "0 * w"),
    (
        "momentum",
        "decay outside the momentum",
        "SGD",
        "m += decay * w",
        "w *= 1 - learning_rate * decay",
    ),
]


@named(MISTAKES)
def test_a_mistake_in_an_optimiser_is_caught(torch, row):
    name, _, part, old, new = row
    wrong = run(mutated(inspect.getsource(optimisers), old, new, part), optimisers, {})
    with pytest.raises(AssertionError):
        check_against_torch(torch, SimpleNamespace(**wrong), name)


# mistake, old, new
WRONG_UPDATES = [
    ("decay without the rate", "1 - learning_rate * weight_decay", "1 - weight_decay"),
    ("decay forgotten", "1 - learning_rate * weight_decay", "1"),
    (
        "decay in the gradient",
        "gradients[part] * gradient_scale",
        "gradients[part] * gradient_scale + weight_decay * w",
    ),
    ("first correction forgotten", "1 - beta1**steps", "1"),
    ("second correction forgotten", "1 / math.sqrt(1 - beta2**steps)", "1"),
    ("eps within the root", "xp.sqrt(v)", "xp.sqrt(v + eps)"),
    ("betas swapped", "beta1, beta2 = betas", "beta2, beta1 = betas"),
    ("scale forgotten", "gradients[part] * gradient_scale", "gradients[part] * 1.0"),
    ("the first chunk only", "split_in_chunks(values)", "split_in_chunks(values)[:1]"),
]


@pytest.mark.parametrize("row", WRONG_UPDATES, ids=[row[0] for row in WRONG_UPDATES])
def test_a_mistake_in_the_update_is_caught(torch, row, monkeypatch):
    _, old, new = row
    wrong = run(mutated(inspect.getsource(optimisation), old, new, "adamw"), optimisation, {})
    monkeypatch.setattr(dispatch, "adamw", wrong["adamw"])
    with pytest.raises(AssertionError):
        check_against_torch(torch, optimisers, "adamw")


def test_adamw_finds_the_published_minimum():
    """BERT's unit test of its optimiser: a quadratic, 100 steps at 0.2."""
    target = np.array([0.4, 0.2, -0.5])
    model = Vector([0.1, -0.2, -0.1]).build(dtype="float64")
    optimiser = AdamW(model, weight_decay=0.0)
    for _ in range(100):
        model.value.gradient[...] = 2 * (model.value.value - target) / 3
        optimiser.step(0.2)
    np.testing.assert_allclose(model.value.value, target, rtol=0, atol=1e-2)


def test_the_arguments_reach_the_optimiser():
    model = Vector([1.0]).build()
    adamw = make_optimiser(
        model, TrainingArguments(adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-3, weight_decay=0.1)
    )
    assert (type(adamw), adamw.betas, adamw.eps, adamw.weight_decay) == (AdamW, (0.8, 0.9), 1e-3, 0.1)
    sgd = make_optimiser(model, TrainingArguments(optim="sgd", momentum=0.5, weight_decay=0.2))
    assert (type(sgd), sgd.momentum, sgd.weight_decay) == (optimisers.SGD, 0.5, 0.2)
    with pytest.raises(InputError, match="optim is 'lion'; expected one of adamw, sgd"):
        TrainingArguments(optim="lion")


@pytest.mark.parametrize("limit", [1.0, 5.0, 20.0])
def test_clipping_equals_pytorch(torch, limit):
    model = Vector(np.zeros(9)).build(dtype="float64")
    model.value.gradient[...] = RANDOM.normal(0, 3, 9)
    tensor = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    tensor.grad = torch.tensor(model.value.gradient)
    norm = torch.nn.utils.clip_grad_norm_([tensor], limit)
    assert float(global_norm(model)) == pytest.approx(float(norm), rel=1e-14)
    clipped = model.value.gradient * clip_factor(float(global_norm(model)), limit)
    np.testing.assert_allclose(clipped, tensor.grad.numpy(), rtol=1e-14)


def test_a_limit_of_zero_does_not_clip():
    assert clip_factor(1e9, 0) == 1


# --- schedules

WARMUPS = [0, 1, 5]


def test_corners_of_every_schedule():
    def rates(kind, *steps, **settings):
        settings = {"learning_rate": 2.0, "warmup_steps": 4, "max_steps": 24, **settings}
        return [scheduled_learning_rate(kind, step, **settings) for step in steps]

    for kind in ("constant", "linear", "cosine"):
        assert rates(kind, 0, 1, 2, 3, 4) == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
        assert rates(kind, 0, warmup_steps=0) == [2.0]
    assert rates("constant", 24, 1000) == [2.0, 2.0]
    assert rates("linear", 9, 14, 24, 1000) == pytest.approx([1.5, 1.0, 0.0, 0.0])
    assert rates("cosine", 9, 14, 24, 1000) == pytest.approx([1 + math.sqrt(0.5), 1.0, 0.0, 0.0])
    assert rates("linear", 14, 24, 30, min_learning_rate=0.5) == pytest.approx([1.25, 0.5, 0.5])
    assert rates("cosine", 14, 24, 30, min_learning_rate=0.5) == pytest.approx([1.25, 0.5, 0.5])
    assert rates("inverse_sqrt", 0, 1, 3, 15, 399) == pytest.approx([0.5, 1.0, 2.0, 1.0, 0.2])
    assert rates("inverse_sqrt", 0, 3, warmup_steps=0) == pytest.approx([2.0, 1.0])


def check_against_transformers(torch, transformers, rate_at):
    """Compare ``rate_at`` with their schedules; they count the steps of a warm-up from 0, we from 1."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)

    def theirs(name, warmup, **settings):
        schedule = transformers.get_scheduler(
            name, optimiser, num_warmup_steps=warmup, num_training_steps=40, **settings
        )
        return lambda step: 0.3 * schedule.lr_lambdas[0](step)

    for warmup in WARMUPS:
        for kind, name, least in (
            ("constant", "constant_with_warmup", {}),
            ("linear", "linear", {}),
            ("cosine", "cosine", {}),
            ("cosine", "cosine_with_min_lr", {"scheduler_specific_kwargs": {"min_lr": 0.03}}),
        ):
            rising, falling = theirs(name, warmup + 1, **least), theirs(name, warmup, **least)
            ours = [
                rate_at(
                    kind,
                    step,
                    learning_rate=0.3,
                    min_learning_rate=0.03 if least else 0.0,
                    warmup_steps=warmup,
                    max_steps=40,
                )
                for step in range(41)
            ]
            expected = [rising(step + 1) if step < warmup else falling(step) for step in range(41)]
            np.testing.assert_allclose(ours, expected, rtol=1e-13, atol=1e-16, err_msg=f"{name} {warmup}")
        if warmup:
            ours = [
                rate_at("inverse_sqrt", step, learning_rate=0.3, warmup_steps=warmup, max_steps=40)
                for step in range(60)
            ]
            expected = [theirs("inverse_sqrt", warmup)(step + 1) for step in range(60)]
            np.testing.assert_allclose(ours, expected, rtol=1e-13)


def check_against_the_paper(rate_at):
    """Section 5.3 of arXiv 1706.03762, of its base model: D 512 and 4000 steps of warm-up."""
    rate = 1 / math.sqrt(512 * 4000)
    for step in (1, 2, 1000, 3999, 4000, 4001, 100_000):
        paper = 512**-0.5 * min(step**-0.5, step * 4000**-1.5)
        ours = rate_at("inverse_sqrt", step - 1, learning_rate=rate, warmup_steps=4000, max_steps=100_000)
        assert ours == pytest.approx(paper, rel=1e-13)


def check_linear_minimum_against_pytorch(torch, rate_at):
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=20)
    for step in range(30):
        ours = rate_at("linear", step, learning_rate=0.3, min_learning_rate=0.03, max_steps=20)
        assert ours == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
        optimiser.step()
        theirs.step()


def check_schedules(torch, transformers, rate_at):
    check_against_transformers(torch, transformers, rate_at)
    check_against_the_paper(rate_at)
    check_linear_minimum_against_pytorch(torch, rate_at)


def test_schedules_equal_transformers_and_pytorch_and_the_paper(torch, transformers):
    check_schedules(torch, transformers, scheduled_learning_rate)


# schedule, mistake, old, new
WRONG_SCHEDULES = [
    (
        "inverse_sqrt",
        "begins at 2",
        "ordinal, warmup = step + 1, max(1, warmup_steps)",
        "ordinal, warmup = step + 2, max(1, warmup_steps)",
    ),
    ("inverse_sqrt", "no root", "math.sqrt(warmup / ordinal)", "warmup / ordinal"),
    (
        "inverse_sqrt",
        "the larger part",
        "min(ordinal / warmup, math.sqrt(warmup / ordinal))",
        "max(ordinal / warmup, math.sqrt(warmup / ordinal))",
    ),
    ("all", "warm-up one step too short", "warmup_steps + 1", "warmup_steps"),
    (
        "all",
        "warm-up begins at 0",
        "learning_rate * (step + 1) / (warmup_steps + 1)",
        "learning_rate * step / (warmup_steps + 1)",
    ),
    ("all", "fall begins at once", "step - warmup_steps", "step"),
    ("all", "fall too late", "max_steps - warmup_steps", "max_steps"),
    (
        "linear",
        "falls on and on",
        "min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))",
        "(step - warmup_steps) / max(1, max_steps - warmup_steps)",
    ),
    ("cosine", "a whole wave", "math.pi", "2 * math.pi"),
    (
        "cosine",
        "minimum forgotten",
        "min_learning_rate + (learning_rate - min_learning_rate) * remaining",
        "(learning_rate - min_learning_rate) * remaining",
    ),
    ("linear", "minimum added", "learning_rate - min_learning_rate", "learning_rate"),
]


@named(WRONG_SCHEDULES)
def test_a_mistake_in_a_schedule_is_caught(torch, transformers, row):
    *_, old, new = row
    wrong = run(mutated(inspect.getsource(schedules), old, new, "scheduled_learning_rate"), schedules, {})
    with pytest.raises(AssertionError):
        check_schedules(torch, transformers, wrong["scheduled_learning_rate"])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_the_arguments_reach_the_schedule(kind):
    arguments = TrainingArguments(
        lr_scheduler_type=kind, learning_rate=0.5, min_learning_rate=0.1, warmup_steps=3
    )
    for step in (0, 2, 3, 7, 20):
        expected = scheduled_learning_rate(
            kind, step, learning_rate=0.5, min_learning_rate=0.1, warmup_steps=3, max_steps=20
        )
        assert arguments.learning_rate_at(step, 20) == expected
