"""The training loop: windows of text, one step after the other."""

import math
from dataclasses import dataclass, fields

import numpy as np

from minitransformer.batches import random_windows
from minitransformer.errors import DivergedError, InputError, check_types
from minitransformer.functional import Key
from minitransformer.optimisers import AdamW, clip_factor, global_norm, warmup_cosine


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
        check_types(self)
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("per_device_train_batch_size", "logging_steps", "eval_steps") else 0
            if not least <= value < math.inf:
                raise InputError(f"{field.name} is {value}; expected a finite number of at least {least}")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) >= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected less than 1")
        if self.adam_epsilon == 0:
            raise InputError("adam_epsilon is 0; expected a positive number")
        if self.seed >= 2**32:
            raise InputError(f"seed is {self.seed}; expected less than 2**32")

    def learning_rate_at(self, step):
        """Return the learning rate of ``step``, counted from 0."""
        return warmup_cosine(
            step,
            learning_rate=self.learning_rate,
            min_learning_rate=self.min_learning_rate,
            warmup_steps=self.warmup_steps,
            max_steps=self.max_steps,
        )


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
    optimiser = AdamW(
        model,
        betas=(arguments.adam_beta1, arguments.adam_beta2),
        eps=arguments.adam_epsilon,
        weight_decay=arguments.weight_decay,
    )
    batches = random_windows(model, tokens, arguments.per_device_train_batch_size, arguments.seed)
    for number, batch in zip(range(1, arguments.max_steps + 1), batches, strict=False):
        learning_rate = arguments.learning_rate_at(number - 1)
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
