"""Evaluation: the loss over a whole text, and what it means in bits."""

import lzma
import math

import numpy as np

from minitransformer.batches import windows
from minitransformer.dispatch import inference
from minitransformer.errors import InputError
from minitransformer.tokenizer import encode

SAMPLED_WINDOWS = 256  # evenly spread, always the same
BATCH_TOKENS, BATCH_LOGITS = 2**13, 2**24  # at most, in one batch


def evaluate(model, tokenizer, text, progress=lambda done, total: None):
    """Return how well ``model`` predicts ``text``, every token but the first of it once, as a dictionary.

    The text is cut into windows of the model's context length, one after the other, the last one shorter.
    ``val_loss`` is in nats a token; ``bits_per_byte`` divides by the UTF-8 bytes that were predicted and so
    compares models of different tokenizers; ``xz_bits_per_byte`` is what ``xz -9`` needs for the same text.
    ``progress`` is called with the windows done and their number.
    """
    tokens = encode(tokenizer, text)
    if len(tokens) < 2:
        raise InputError(
            f"the text has {len(tokens)} tokens; expected at least 2, one to predict from another"
        )
    loss = whole_loss(model, tokens, progress)
    predicted = len(tokens) - 1
    content = text.encode("utf-8")
    predicted_bytes = len(content) - len(tokenizer.decode([int(tokens[0])]).encode("utf-8"))
    return {
        "val_loss": loss,
        "perplexity": float(np.exp(loss)),
        "bits_per_byte": loss * predicted / math.log(2) / predicted_bytes,
        "xz_bits_per_byte": 8 * len(lzma.compress(content, preset=9)) / len(content),
        "tokens": predicted,
        "bytes": predicted_bytes,
    }


def whole_loss(model, tokens, progress=lambda done, total: None):
    """Return the mean loss in nats a token over all of ``tokens`` but the first, each predicted once.

    The windows follow one another, the last one shorter. ``progress`` as in ``evaluate``.
    """
    length = model.config.context_length
    whole, rest = divmod(len(tokens) - 1, length)
    count = whole + (rest > 0)
    nats = 0.0
    if whole:
        starts = np.arange(whole) * length
        nats += mean_loss(model, tokens, starts, length, lambda done: progress(done, count)) * whole * length
    if rest:
        nats += mean_loss(model, tokens, np.array([whole * length]), rest) * rest
        progress(count, count)
    return nats / (len(tokens) - 1)


def sampled_loss(model, tokens):
    """Return the mean loss over windows spread evenly over ``tokens``: the same ones every time."""
    length = min(model.config.context_length, len(tokens) - 1)
    count = min(SAMPLED_WINDOWS, (len(tokens) - 1) // length)
    starts = np.linspace(0, len(tokens) - 1 - length, count).astype(np.int64)
    return mean_loss(model, tokens, starts, length)


def mean_loss(model, tokens, starts, length, progress=lambda done: None):
    """Return the mean loss in nats a token over the windows of ``length`` at ``starts``.

    ``progress`` is called with the number of windows done after each batch.
    """
    batch_tokens = min(BATCH_TOKENS, BATCH_LOGITS // model.config.vocabulary_size)
    rows = max(1, batch_tokens // length)
    total, count = 0.0, 0
    with inference(), np.errstate(over="ignore", invalid="ignore"):  # the loss shows it
        for first in range(0, len(starts), rows):
            batch = windows(model, tokens, starts[first : first + rows], length)
            totals, _ = model.loss(batch)
            total += float(totals["tokens"])
            count += batch["counts"]["tokens"]
            progress(min(first + rows, len(starts)))
    return total / count
