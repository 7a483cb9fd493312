"""Scores: the loss over a text or a task, the bits per byte of a text, and the share of correct answers."""

import lzma
import math
from collections import Counter

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.data.datasets import TokenWindows, on_device
from minitransformer.data.tokenizer import is_reversible, token_byte_count
from minitransformer.dispatch import inference
from minitransformer.functional import IGNORED

SAMPLED_PLACES = 256
BATCH_TOKENS, BATCH_LOGITS = 2**13, 2**24  # the most in one batch
LARGEST_LOSS = 700  # nats: e to the power of more is infinite in float64
LARGEST_FOR_XZ = 2**26  # bytes: xz takes a minute


def evaluate_text(model, tokenizer, tokens, text, progress=lambda done, total: None):
    """Return the scores of ``model`` on a text, a dictionary; every token but the first is predicted once.

    ``tokens`` are the ids of the ``Text`` ``text``. They are divided into contiguous windows of the model's
    context length, the last one shorter. ``val_loss`` is in nats per token; ``bits_per_byte`` divides by the
    number of UTF-8 bytes predicted and so compares models with different tokenizers (None for WordPiece,
    which discards case and spacing); ``xz_bits_per_byte`` is the size of the text compressed by ``xz -9``
    (None above 64 MiB). ``progress`` is called with the number of windows done and their total.
    """
    loss = whole_loss(model, TokenWindows(tokens, model.config.context_length), progress)
    predicted = len(tokens) - 1
    predicted_bytes = text.byte_count - token_byte_count(tokenizer, int(tokens[0]))
    comparable = predicted_bytes and is_reversible(tokenizer)
    return {
        "val_loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": loss * predicted / math.log(2) / predicted_bytes if comparable else None,
        "xz_bits_per_byte": _compute_xz_bits_per_byte(text),
        "tokens": predicted,
        "bytes": predicted_bytes,
    }


def evaluate_task(model, dataset, progress=lambda done, total: None, vocabulary_size=None):
    """Return the scores of ``model`` on the examples of ``dataset`` (``Sequences``), a dictionary.

    ``exact_match`` is the share of examples whose whole answer is correct when the likeliest token (below
    ``vocabulary_size``, if given) is always taken. One forward over the correct answer decides this: up to
    the first wrong token, generation would have had the same input.
    """
    correct, places = 0, dataset.places()
    for done, targets, logits in _iterate_logits(model, dataset, places):
        right = (logits[..., :vocabulary_size].argmax(axis=-1) == targets) | (targets == IGNORED)
        correct += int(right.all(axis=1).sum())
        progress(done, len(places))
    loss = whole_loss(model, dataset)
    return {
        "exact_match": correct / len(places),
        "correct": correct,
        "examples": len(places),
        "val_loss": loss,
        "perplexity": perplexity(loss),
    }


def predict(model, dataset):
    """Return the logits (N, T, V) and the targets (N, T) of every example of ``dataset``, on the host.

    Padding of examples of unequal lengths has logits 0 and the target −100.
    """
    parts = [(logits, targets) for _, targets, logits in _iterate_logits(model, dataset, dataset.places())]
    length = max(targets.shape[1] for _, targets in parts)
    padded = [_pad(logits, length, 0) for logits, _ in parts]
    return np.concatenate(padded), np.concatenate([_pad(targets, length, IGNORED) for _, targets in parts])


def whole_loss(model, dataset, progress=lambda done, total: None):
    """Return the mean loss in nats per token over ``dataset``; ``progress`` as in ``evaluate_text``."""
    return mean_loss(model, dataset, dataset.places(), progress)


def perplexity(loss):
    """Return e to the power of ``loss``, or None where that is not a finite number."""
    return math.exp(loss) if loss < LARGEST_LOSS else None


def sampled_loss(model, dataset):
    """Return the mean loss over at most 256 examples, evenly spread over ``dataset`` and always the same."""
    places = dataset.places()
    if len(places) > SAMPLED_PLACES:
        spread = np.linspace(0, len(places) - 1, SAMPLED_PLACES).astype(np.int64)
        places = [places[index] for index in spread.tolist()]
    return mean_loss(model, dataset, places)


def mean_loss(model, dataset, places, progress=lambda done, total: None):
    """Return the sum of the model's losses over the examples at ``places``, each in nats per target."""
    totals, counts = Counter(), Counter()
    for done, batch in _iterate_batches(model, dataset, places):
        counts.update(model.count_targets(batch))  # adds
        with inference(), np.errstate(over="ignore", invalid="ignore"):  # the loss shows it
            batch_totals, _ = model.loss(_on_device(model, batch))
        for name, total in batch_totals.items():
            totals[name] += float(total)
        progress(done, len(places))
    return sum(totals[name] / max(1, counts[name]) for name in totals)


def batch_rows(model):
    """Return the number of examples in a batch of evaluation, limited by the memory for logits."""
    config = model.config
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // config.vocabulary_size) // config.context_length)


def _iterate_logits(model, dataset, places):
    """Yield the number of examples done, and the targets and logits of a batch, on the host."""
    for done, batch in _iterate_batches(model, dataset, places):
        with inference():
            logits, _ = model(_on_device(model, batch))
        yield done, batch["targets"], to_numpy(logits)


def _iterate_batches(model, dataset, places):
    """Yield the number of examples done with each batch of the examples at ``places``, and the batch."""
    rows = batch_rows(model)
    for first in range(0, len(places), rows):
        part = places[first : first + rows]
        yield first + len(part), dataset.collate(part)


def _on_device(model, batch):
    return on_device(array_module(model.flat.values), batch)


def _pad(array, length, value):
    widths = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)


def _compute_xz_bits_per_byte(text):
    if text.byte_count > LARGEST_FOR_XZ:
        return None
    compressor = lzma.LZMACompressor(preset=9)
    size = sum(len(compressor.compress(piece.encode("utf-8"))) for piece in text.pieces())
    return 8 * (size + len(compressor.flush())) / text.byte_count
