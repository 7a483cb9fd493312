"""Learning-rate schedules: a rise while warming up, then one of four shapes."""

import math

SCHEDULES = ("constant", "linear", "cosine", "inverse_sqrt")


def scheduled_learning_rate(kind, step, *, learning_rate, min_learning_rate=0.0, warmup_steps=0, max_steps=0):
    """Return the learning rate of ``step``, counted from 0.

    For ``warmup_steps`` it rises to ``learning_rate`` η in equal steps. ``"constant"`` then stays;
    ``"linear"`` and ``"cosine"`` (half a wave, as in nanoGPT) fall to ``min_learning_rate`` at
    ``max_steps``. ``"inverse_sqrt"`` is the schedule of Vaswani et al. (arXiv 1706.03762, section 5.3),
    known as Noam, with s = step + 1 and w = ``warmup_steps``: η · min(s/w, √(w/s)); the paper's has η =
    1/√(D w).
    """
    if kind == "inverse_sqrt":
        ordinal, warmup = step + 1, max(1, warmup_steps)
        return learning_rate * min(ordinal / warmup, math.sqrt(warmup / ordinal))
    if step < warmup_steps:
        return learning_rate * (step + 1) / (warmup_steps + 1)
    if kind == "constant":
        return learning_rate
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    remaining = 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return min_learning_rate + (learning_rate - min_learning_rate) * remaining
