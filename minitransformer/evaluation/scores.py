"""Evaluation: the loss over a whole text or task, what it means in bits, and how many answers are right."""

import lzma
import math

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.data.datasets import TokenWindows, on_device
from minitransformer.data.tokenizer import is_reversible, token_byte_count
from minitransformer.dispatch import inference
from minitransformer.functional import IGNORED

SAMPLED_PLACES = 256  # evenly spread, always the same
BATCH_TOKENS, BATCH_LOGITS = 2**13, 2**24  # at most, in one batch
LARGEST_LOSS = 700  # nats: e to its power is still a float
LARGEST_FOR_XZ = 2**26  # bytes: a minute of xz


def evaluate_text(model, tokenizer, tokens, text, progress=lambda done, total: None):
    """Return how well ``model`` predicts a text, every token but the first of it once, as a dictionary.

    ``tokens`` are the ids of the ``Text`` ``text``. They are cut into windows of the model's context length,
    one after the other, the last one shorter. ``val_loss`` is in nats a token; ``bits_per_byte`` divides by
    the UTF-8 bytes that were predicted and so compares models of different tokenizers (None for WordPiece,
    which gives up case and spacing); ``xz_bits_per_byte`` is what ``xz -9`` needs for the same text (None
    above 64 MiB). ``progress`` is called with the windows done and their number.
    """
    loss = whole_loss(model, TokenWindows(tokens, model.config.context_length), progress)
    predicted = len(tokens) - 1
    predicted_bytes = text.byte_count - token_byte_count(tokenizer, int(tokens[0]))
    comparable = predicted_bytes and is_reversible(tokenizer)
    return {
        "val_loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": loss * predicted / math.log(2) / predicted_bytes if comparable else None,
        "xz_bits_per_byte": _xz_bits_per_byte(text),
        "tokens": predicted,
        "bytes": predicted_bytes,
    }


def evaluate_task(model, dataset, progress=lambda done, total: None, vocabulary_size=None):
    """Return how well ``model`` solves the examples of ``dataset`` (``Sequences``), as a dictionary.

    ``exact_match`` is the share of examples whose whole answer comes out right when the likeliest token is
    always taken, of those below ``vocabulary_size`` if that is given. One forward with the right answer in
    place tells: the first token that goes wrong is the same either way.
    """
    correct, places = 0, dataset.places()
    for done, targets, logits in _forwards(model, dataset, places):
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
    """Return the logits (N, T, V) for every example of ``dataset``, and its targets (N, T), on the host.

    Where examples have unequal lengths, what pads them has logits 0 and the target −100.
    """
    parts = [(logits, targets) for _, targets, logits in _forwards(model, dataset, dataset.places())]
    length = max(targets.shape[1] for _, targets in parts)
    padded = [_padded(logits, length, 0) for logits, _ in parts]
    return np.concatenate(padded), np.concatenate([_padded(targets, length, IGNORED) for _, targets in parts])


def whole_loss(model, dataset, progress=lambda done, total: None):
    """Return the mean loss in nats a token over all of ``dataset``; ``progress`` as in ``evaluate_text``."""
    return mean_loss(model, dataset, dataset.places(), progress)


def perplexity(loss):
    """Return e to the power of ``loss``; None where that is no finite number."""
    return math.exp(loss) if loss < LARGEST_LOSS else None


def sampled_loss(model, dataset):
    """Return the mean loss over examples spread evenly over ``dataset``: the same ones every time."""
    places = dataset.places()
    if len(places) > SAMPLED_PLACES:
        spread = np.linspace(0, len(places) - 1, SAMPLED_PLACES).astype(np.int64)
        places = [places[index] for index in spread.tolist()]
    return mean_loss(model, dataset, places)


def mean_loss(model, dataset, places, progress=lambda done, total: None):
    """Return the mean loss in nats a token over the examples at ``places``, summed over its names."""
    totals, counts = {}, {}
    for done, batch in _batches(model, dataset, places):
        for name, count in model.count_targets(batch).items():
            counts[name] = counts.get(name, 0) + count
        with inference(), np.errstate(over="ignore", invalid="ignore"):  # the loss shows it
            batch_totals, _ = model.loss(_on_device(model, batch))
        for name, total in batch_totals.items():
            totals[name] = totals.get(name, 0.0) + float(total)
        progress(done, len(places))
    return sum(totals[name] / max(1, counts[name]) for name in totals)


def batch_rows(model):
    """Return how many examples are evaluated together: as many as a modest amount of memory is enough for."""
    config = model.config
    return max(1, min(BATCH_TOKENS, BATCH_LOGITS // config.vocabulary_size) // config.context_length)


def _forwards(model, dataset, places):
    """Yield how many examples are done, and targets and logits of the last of them, on the host."""
    for done, batch in _batches(model, dataset, places):
        with inference():
            logits, _ = model(_on_device(model, batch))
        yield done, batch["targets"], to_numpy(logits)


def _batches(model, dataset, places):
    """Yield batches of the examples at ``places``, and how many are done with each."""
    rows = batch_rows(model)
    for first in range(0, len(places), rows):
        part = places[first : first + rows]
        yield first + len(part), dataset.collate(part)


def _on_device(model, batch):
    return on_device(array_module(model.flat.values), batch)


def _padded(array, length, value):
    widths = [(0, 0), (0, length - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
    return np.pad(array, widths, constant_values=value)


def _xz_bits_per_byte(text):
    if text.byte_count > LARGEST_FOR_XZ:
        return None
    compressor = lzma.LZMACompressor(preset=9)
    size = sum(len(compressor.compress(piece.encode("utf-8"))) for piece in text.pieces())
    return 8 * (size + len(compressor.flush())) / text.byte_count
