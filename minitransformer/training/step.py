"""One step of training: forward, backward, clip, optimise."""

import math
from collections import Counter
from typing import NamedTuple

import numpy as np

from minitransformer.arrays import array_module
from minitransformer.data.datasets import on_device
from minitransformer.errors import DivergedError
from minitransformer.functional import Key
from minitransformer.training.optimisers import clip_factor, global_norm


class StepResult(NamedTuple):
    """The result of a step: ``losses`` by name, in nats per target, the norm of all gradients, and ``counts``
    by name, the numbers of targets; all as they were before the parameters changed."""

    losses: dict
    gradient_norm: float
    counts: dict

    @property
    def loss(self):
        """The sum of the losses: what was minimised."""
        return sum(self.losses.values())


def train_step(model, optimiser, micro_batches, learning_rate, max_grad_norm=0.0, key=None):
    """Train ``model`` for one step on the list ``micro_batches``; return a ``StepResult``.

    The sum of the model's losses is minimised. Each of them, by its name, is the mean over its targets in all
    micro-batches together, as if they were one batch: ``model.count_targets`` counts them first, and every
    micro-batch has the weight 1/count. ``key`` turns dropout on. Raises DivergedError if the loss or a
    gradient is not a finite number; the parameters are unchanged then.
    """
    xp = array_module(model.flat.values)
    counts = Counter()
    for batch in micro_batches:
        counts.update(model.count_targets(batch))  # adds; micro-batches may differ in losses
    weights = {name: 1 / count if count else 0.0 for name, count in counts.items()}
    totals = dict.fromkeys(counts, 0.0)

    model.zero_gradients()
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows shows in the loss or the norm
        for index, batch in enumerate(micro_batches):
            batch_key = None if key is None else Key(key.seed, key.stream + index)
            batch_totals, backward = model.loss(on_device(xp, batch), batch_key)
            backward(weights)
            for name, total in batch_totals.items():
                totals[name] += float(total)
        norm = float(global_norm(model))

    result = StepResult({name: totals[name] * weights[name] for name in totals}, norm, dict(counts))
    if not (math.isfinite(result.loss) and math.isfinite(norm)):
        what = f"the gradient norm is {norm}" if math.isfinite(result.loss) else f"the loss is {result.loss}"
        raise DivergedError(
            f"training diverged at step {optimiser.steps + 1}: {what}; try a lower learning_rate"
        )
    optimiser.step(learning_rate, clip_factor(norm, max_grad_norm))
    return result
