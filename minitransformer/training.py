"""The training loop: windows of text, one step after the other."""

import math
from dataclasses import dataclass, fields

import numpy as np

from minitransformer.arrays import array_module
from minitransformer.dispatch import inference
from minitransformer.errors import DivergedError, InputError
from minitransformer.functional import Key
from minitransformer.optimisers import AdamW, clip_factor, global_norm, warmup_cosine

EVALUATION_WINDOWS = 256  # of the validation text, evenly spread, always the same
EVALUATION_TOKENS = 2**13  # in one batch


@dataclass(frozen=True)
class TrainingArguments:
    """How to train, with the field names of Hugging Face's ``TrainingArguments`` where it has one.

    A step is one update by ``per_device_train_batch_size`` windows. The learning rate rises for
    ``warmup_steps`` and falls by half a cosine to ``min_learning_rate`` at ``max_steps``. ``max_grad_norm`` 0
    means no clipping. Impossible values raise InputError.
    """

    per_device_train_batch_size: int = 12
    max_steps: int = 2000
    learning_rate: float = 1e-3
    min_learning_rate: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.99
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    logging_steps: int = 20
    eval_steps: int = 250
    seed: int = 1337

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("per_device_train_batch_size", "logging_steps", "eval_steps") else 0
            if not least <= value < math.inf:
                raise InputError(f"{field.name} is {value}; expected a finite number of at least {least}")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected less than 1")


@dataclass(frozen=True)
class Step:
    """What one update did. ``loss`` is the mean in nats a token, before the update."""

    number: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


def training_steps(model, tokens, arguments):
    """Train ``model`` on the id array ``tokens``, yielding a ``Step`` after each of ``max_steps`` updates.

    Batches are uniform random windows. Raises DivergedError, before updating, as soon as a loss or a
    gradient is not finite.
    """
    length = model.config.context_length
    optimiser = AdamW(
        model,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
    )
    random = np.random.default_rng(arguments.seed)
    for number in range(1, arguments.max_steps + 1):
        starts = random.integers(0, len(tokens) - length, arguments.per_device_train_batch_size)
        batch = windows(model, tokens, starts, length)
        learning_rate = warmup_cosine(
            number - 1,
            learning_rate=arguments.learning_rate,
            min_learning_rate=arguments.min_learning_rate,
            warmup_steps=arguments.warmup_steps,
            max_steps=arguments.max_steps,
        )
        key = Key(arguments.seed << 32 | number)
        loss, norm = update(model, optimiser, batch, learning_rate, arguments.max_grad_norm, key)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm}"
            raise DivergedError(f"training diverged at step {number}: {what}; try a lower learning_rate")
        yield Step(number, loss, norm, learning_rate, batch["counts"]["tokens"])


def update(model, optimiser, batch, learning_rate, max_grad_norm=0.0, key=None):
    """Do one step on ``batch``; return the mean loss and the gradient norm, both before the update.

    Where one of them is not finite, nothing is updated.
    """
    model.zero_gradients()
    count = batch["counts"]["tokens"]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows shows in the loss or the norm
        totals, backward = model.loss(batch, key)
        backward({"tokens": 1 / count})
        loss, norm = float(totals["tokens"]) / count, float(global_norm(model))
    if math.isfinite(loss) and math.isfinite(norm):
        optimiser.step(learning_rate, clip_factor(norm, max_grad_norm))
    return loss, norm


def windows(model, tokens, starts, length):
    """Return the batch of the windows of ``length`` tokens at ``starts``, on the model's device."""
    xp = array_module(model.flat.values)
    places = starts[:, None] + np.arange(length)
    ids, targets = tokens[places].astype(np.int64), tokens[places + 1].astype(np.int64)
    return {
        "ids": xp.asarray(ids),
        "targets": xp.asarray(targets),
        "counts": {"tokens": targets.size},
    }


def sampled_loss(model, tokens):
    """Return the mean loss over windows spread evenly over ``tokens``: the same ones every time."""
    length = min(model.config.context_length, len(tokens) - 1)
    count = min(EVALUATION_WINDOWS, (len(tokens) - 1) // length)
    starts = np.linspace(0, len(tokens) - 1 - length, count).astype(np.int64)
    return mean_loss(model, tokens, starts, length)


def mean_loss(model, tokens, starts, length, progress=lambda done: None):
    """Return the mean loss in nats a token over the windows of ``length`` at ``starts``.

    ``progress`` is called with the number of windows done after each batch.
    """
    rows = max(1, EVALUATION_TOKENS // length)
    total, count = 0.0, 0
    with inference(), np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(starts), rows):
            batch = windows(model, tokens, starts[first : first + rows], length)
            totals, _ = model.loss(batch)
            total += float(totals["tokens"])
            count += batch["counts"]["tokens"]
            progress(min(first + rows, len(starts)))
    return total / count
