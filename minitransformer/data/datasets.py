"""Datasets: which examples are trained on at which step, and how examples become a batch.

A dataset numbers its examples by integers, their *places*, and has

- ``training_places(number, rows, seed)``: the places of training batch ``number`` (from 0), a pure function
  of its arguments, so that a run can be resumed from its step number alone;
- ``batches_per_epoch(rows)``: the number of such batches in one pass over the data;
- ``places()``: all places once, in order, for evaluation;
- ``collate(places)``: the batch of these examples, NumPy arrays by name, as the model takes them;

and may have

- ``check(vocabulary_size, context_length)``: raises InputError for an example that such a model cannot take;
  called before the first step;
- ``fingerprint()``: a string that identifies the examples, so that a run is resumed with the same data only.
"""

import hashlib

import numpy as np

from minitransformer.errors import InputError
from minitransformer.functional import IGNORED

POOL = 32  # batches whose rows are sorted by length together
BLOCK, EXAMPLES = 2**20, 2**12  # tokens and examples that are checked at a time
MOST_READ = 2**24  # tokens; of longer files evenly spread blocks of so many in all are read


class TokenWindows:
    """Windows of ``length`` tokens of one long row; a place is the index of a window's first token.

    ``tokens`` is an integer array, which may be mapped from a file (``numpy.memmap``): only the tokens of a
    batch are read. The target of every token is the next one. Training draws windows uniformly from all
    places; evaluation divides the row into contiguous windows, the last one shorter, so that every token but
    the first is predicted once.
    """

    def __init__(self, tokens, length):
        tokens = tokens if hasattr(tokens, "dtype") else np.asarray(tokens)
        if len(tokens) < 2:
            raise InputError(
                f"there are {len(tokens)} tokens; expected at least 2, one to predict from another"
            )
        if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
            raise InputError(
                f"the tokens are {tokens.dtype} of shape {tokens.shape}; expected one row of integers"
            )
        self.tokens, self.length = tokens, length

    def check(self, vocabulary_size, context_length):
        """Raise InputError unless windows and tokens fit a model of this size.

        Of a file of more than 2²⁴ tokens (``MOST_READ``) evenly spread blocks are read, including the first
        and the last. Nothing is read if every value of the tokens' type is in the vocabulary.
        """
        if self.length > context_length:
            raise InputError(
                f"its windows have {self.length} tokens; the model's context_length is {context_length}: "
                "make shorter windows, or a model with a larger context_length"
            )
        if self.tokens.dtype.kind == "u" and np.iinfo(self.tokens.dtype).max < vocabulary_size:
            return
        most = MOST_READ if isinstance(self.tokens, np.memmap) else len(self.tokens)
        for start, block in _iterate_blocks(self.tokens, most):
            if block.min() < 0 or block.max() >= vocabulary_size:
                place = int(_find_outside(block, vocabulary_size).argmax())
                raise InputError(
                    f"token {start + place:,} is {block[place]}; expected 0 to {vocabulary_size - 1} "
                    f"(the model's vocabulary_size is {vocabulary_size})"
                )

    def fingerprint(self):
        """Return the number of tokens with a hash of them, or of 2²⁴ (``MOST_READ``) if there are more."""
        digest = hashlib.sha256(f"{self.length} {len(self.tokens)}".encode())
        for _, block in _iterate_blocks(self.tokens, MOST_READ):
            digest.update(block.astype("<i8").tobytes())
        return f"{len(self.tokens):,} tokens in windows of {self.length}, sha256 {digest.hexdigest()[:16]}"

    def batches_per_epoch(self, rows):
        """Return the number of batches of ``rows`` windows that have as many tokens as the row."""
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
        return _make_batch(row[:, :-1], row[:, 1:].copy(), lengths)


class Sequences:
    """Examples of unequal lengths, each a row of ``ids`` and its ``targets``; a place is an index.

    A target of −100 is not predicted. Training passes over all examples in a new order every epoch; examples
    of similar length share a batch, which keeps padding small.
    """

    def __init__(self, ids, targets):
        if not len(ids) or len(ids) != len(targets):
            raise InputError(
                f"there are {len(ids)} rows of ids and {len(targets)} of targets; expected as many"
            )
        self.ids = [_as_integers(row) for row in ids]
        self.targets = [_as_integers(row) for row in targets]
        self.lengths = np.array([len(row) for row in self.ids])
        if self.lengths.min() < 1 or any(map(_differ, self.ids, self.targets)):
            raise InputError("a row of ids is empty or not as long as its targets")
        self._plan = None, None

    def check(self, vocabulary_size, context_length):
        """Raise InputError unless all examples fit a model of this size and there is a target to predict."""
        longest = int(self.lengths.argmax())
        if self.lengths[longest] > context_length:
            raise InputError(
                f"example {longest} has {self.lengths[longest]} tokens; expected at most {context_length}, "
                "the model's context_length: shorten it, or make a model with a larger context_length"
            )
        predicted = 0
        for first in range(0, len(self.ids), EXAMPLES):
            part = slice(first, first + EXAMPLES)
            ids, targets = np.concatenate(self.ids[part]), np.concatenate(self.targets[part])
            real = targets != IGNORED
            predicted += real.sum()
            for what, row, wrong in (
                ("token", ids, _find_outside(ids, vocabulary_size)),
                ("target", targets, _find_outside(targets, vocabulary_size) & real),
            ):
                if wrong.any():
                    place = int(wrong.argmax())
                    ends = np.cumsum(self.lengths[part])
                    example = int(np.searchsorted(ends, place, side="right"))
                    raise InputError(
                        f"{what} {place - ends[example] + self.lengths[first + example]} of example "
                        f"{first + example} is {row[place]}; expected 0 to {vocabulary_size - 1} "
                        f"(the model's vocabulary_size is {vocabulary_size})"
                        + (f", or {IGNORED} where nothing is to be predicted" if what == "target" else "")
                    )
        if not predicted:
            raise InputError(f"there is nothing to predict: every target is {IGNORED}")

    def fingerprint(self):
        """Return the number of examples with a hash of them all."""
        digest = hashlib.sha256(self.lengths.astype("<i8").tobytes())
        for row in (*self.ids, *self.targets):
            digest.update(row.astype("<i8", copy=False))
        return f"{len(self.ids):,} examples, sha256 {digest.hexdigest()[:16]}"

    def batches_per_epoch(self, rows):
        """Return how many batches of ``rows`` examples are one pass; one of them may be smaller."""
        return -(-len(self.ids) // rows)

    def training_places(self, number, rows, seed):
        """Return the indices of batch ``number``: at most ``rows`` examples of similar length."""
        epoch, index = divmod(number, self.batches_per_epoch(rows))
        key = seed, epoch, rows
        if self._plan[0] != key:
            self._plan = key, self._make_batches(*key)
        return self._plan[1][index]

    def _make_batches(self, seed, epoch, rows):
        """Shuffle, sort each pool of ``POOL`` batches by length, divide it into batches, shuffle these."""
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
        return _make_batch(ids, targets, lengths)


def fingerprint(dataset):
    """Return a string that identifies ``dataset``: its ``fingerprint()``, or else its type and size."""
    if dataset is None:
        return "None"
    if hasattr(dataset, "fingerprint"):
        return dataset.fingerprint()
    return f"{type(dataset).__name__} of {len(dataset.places()):,} examples"


def count_tokens(batch):
    """Return the number of tokens of ``batch`` without padding."""
    return int(batch["lengths"].sum()) if "lengths" in batch else batch["ids"].size


def on_device(xp, batch):
    """Return ``batch`` with its arrays in ``xp``."""
    return {name: xp.asarray(part) for name, part in batch.items()}


def _make_batch(ids, targets, lengths):
    """Return the batch; rows of equal lengths have no ``lengths``, and attention no padding to mask."""
    batch = {"ids": ids, "targets": targets}
    if (lengths != ids.shape[1]).any():
        targets[np.arange(ids.shape[1]) >= lengths[:, None]] = IGNORED
        batch["lengths"] = lengths
    return batch


def _iterate_blocks(tokens, most):
    """Yield start and tokens of contiguous blocks, or of evenly spread ones of ``most`` tokens in all."""
    starts = range(0, len(tokens), BLOCK)
    if len(tokens) > most:
        starts = np.linspace(0, len(tokens) - BLOCK, most // BLOCK).astype(np.int64).tolist()
    for start in starts:
        yield start, np.asarray(tokens[start : start + BLOCK])


def _find_outside(row, vocabulary_size):
    """Return a mask of the entries of ``row`` that are not token ids."""
    return (row < 0) | (row >= vocabulary_size)


def _as_integers(row):
    """Return ``row`` as int64; raise InputError unless it has integers only."""
    array = np.asarray(row)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(f"an example is {array.dtype} of shape {array.shape}; expected one row of integers")
    return array.astype(np.int64, copy=False)


def _differ(ids, targets):
    return ids.shape != targets.shape
