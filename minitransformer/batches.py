"""Batches: windows of a long row of tokens."""

import numpy as np

from minitransformer.arrays import array_module


def windows(model, tokens, starts, length):
    """Return the batch of the windows of ``length`` tokens at ``starts`` (B,), on the model's device.

    ``tokens`` is a NumPy array of ids. The targets are the tokens that follow; ``counts`` says, on the host,
    how many of them there are.
    """
    xp = array_module(model.flat.values)
    places = starts[:, None] + np.arange(length)
    ids, targets = tokens[places].astype(np.int64), tokens[places + 1].astype(np.int64)
    return {
        "ids": xp.asarray(ids),
        "targets": xp.asarray(targets),
        "counts": {"tokens": targets.size},
    }


def random_windows(model, tokens, rows, seed):
    """Yield batches of ``rows`` windows of the model's context length, uniformly drawn, without end."""
    length = model.config.context_length
    random = np.random.default_rng(seed)
    while True:
        yield windows(model, tokens, random.integers(0, len(tokens) - length, rows), length)
