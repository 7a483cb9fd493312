"""Datasets: which examples a trainer takes at which step, and how examples become a batch.

A dataset names its examples by integers, their *places*, and has

- ``training_places(number, rows, seed)``: the places of training batch ``number`` (from 0), a pure function
  of its arguments: what comes next never depends on what was drawn before, so a run can be
  continued from its step number alone;
- ``batches_per_epoch(rows)``: how many such batches are one pass;
- ``places()``: all of them once, in order, to evaluate;
- ``collate(places)``: the batch of these examples, NumPy arrays and ``counts``, host integers by the name of
  the loss.
"""

import numpy as np

from minitransformer.errors import InputError
from minitransformer.functional import IGNORED

POOL = 32  # batches whose rows are sorted by length together


class TokenWindows:
    """Windows of ``length`` tokens of one long row; a place is the index of a window's first token.

    ``tokens`` is an integer array, which may lie in a file (``numpy.memmap``): only what a batch needs is
    read. The target of every token is the one that follows. Training draws windows uniformly, wherever they
    start; evaluation cuts the row into windows one after the other, the last one shorter, so that every
    token but the first is predicted once.
    """

    def __init__(self, tokens, length):
        if len(tokens) < 2:
            raise InputError(
                f"there are {len(tokens)} tokens; expected at least 2, one to predict from another"
            )
        self.tokens, self.length = tokens, length

    def batches_per_epoch(self, rows):
        """Return how many batches of ``rows`` windows hold as many tokens as there are."""
        return max(1, (len(self.tokens) - 1) // (rows * self.length))

    def training_places(self, number, rows, seed):
        """Return the starts (rows,) of windows drawn uniformly."""
        if len(self.tokens) <= self.length:
            raise InputError(
                f"there are {len(self.tokens)} tokens; windows of {self.length} need at least one more"
            )
        return np.random.default_rng((seed, number)).integers(0, len(self.tokens) - self.length, rows)

    def places(self):
        """Return the starts of the windows that cover the row."""
        return range(0, len(self.tokens) - 1, self.length)

    def collate(self, places):
        """Return the batch of the windows that start at ``places``."""
        places = np.asarray(places)
        lengths = np.minimum(self.length, len(self.tokens) - 1 - places)
        reach = places[:, None] + np.arange(lengths.max() + 1)
        row = np.asarray(self.tokens[np.minimum(reach, len(self.tokens) - 1)], np.int64)
        return _batch(row[:, :-1], row[:, 1:].copy(), lengths)


class Sequences:
    """Examples of unequal lengths, each a row of ``ids`` and its ``targets``; a place is an index.

    A target of −100 is not predicted. Training passes over all examples again and again, in another order
    each time; neighbours of similar length share a batch, so that little of it is padding.
    """

    def __init__(self, ids, targets):
        if not len(ids) or len(ids) != len(targets):
            raise InputError(
                f"there are {len(ids)} rows of ids and {len(targets)} of targets; expected as many"
            )
        self.ids = [np.asarray(row, np.int64) for row in ids]
        self.targets = [np.asarray(row, np.int64) for row in targets]
        self.lengths = np.array([len(row) for row in self.ids])
        if self.lengths.min() < 1 or any(map(_differ, self.ids, self.targets)):
            raise InputError("a row of ids is empty or not as long as its targets")
        self._plan = None, None

    def batches_per_epoch(self, rows):
        """Return how many batches of ``rows`` examples are one pass; one of them may be smaller."""
        return -(-len(self.ids) // rows)

    def training_places(self, number, rows, seed):
        """Return the indices of batch ``number``: at most ``rows`` examples of similar length."""
        epoch, index = divmod(number, self.batches_per_epoch(rows))
        key = seed, epoch, rows
        if self._plan[0] != key:
            self._plan = key, self._batches_of(*key)
        return self._plan[1][index]

    def _batches_of(self, seed, epoch, rows):
        """Shuffle, sort each pool of neighbours by length, cut into batches, shuffle the batches."""
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(self.ids))
        batches = []
        for start in range(0, len(order), POOL * rows):
            pool = order[start : start + POOL * rows]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[first : first + rows] for first in range(0, len(pool), rows)]
        return [batches[index] for index in random.permutation(len(batches))]

    def places(self):
        """Return all indices."""
        return range(len(self.ids))

    def collate(self, places):
        """Return the batch of the examples at ``places``, padded on the right."""
        lengths = self.lengths[np.asarray(places)]
        ids = np.zeros((len(lengths), lengths.max()), np.int64)
        targets = np.full_like(ids, IGNORED)
        for row, (place, length) in enumerate(zip(places, lengths, strict=True)):
            ids[row, :length], targets[row, :length] = self.ids[place], self.targets[place]
        return _batch(ids, targets, lengths)


def real_tokens(batch):
    """Return how many tokens of ``batch`` are not padding."""
    return int(batch["lengths"].sum()) if "lengths" in batch else batch["ids"].size


def on_device(xp, batch):
    """Return ``batch`` with its arrays in ``xp``; the counts stay on the host."""
    return {name: part if name == "counts" else xp.asarray(part) for name, part in batch.items()}


def _batch(ids, targets, lengths):
    """Return the batch; rows of one length need no ``lengths``, and attention then no mask for them."""
    batch = {"ids": ids, "targets": targets}
    if (lengths != ids.shape[1]).any():
        targets[np.arange(ids.shape[1]) >= lengths[:, None]] = IGNORED
        batch["lengths"] = lengths
    return {**batch, "counts": {"tokens": int((targets != IGNORED).sum())}}


def _differ(ids, targets):
    return ids.shape != targets.shape
