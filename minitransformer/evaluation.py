"""Evaluation: the loss over a whole text, and what it means in bits."""

import lzma
import math

import numpy as np

from minitransformer.errors import InputError
from minitransformer.tokenizer import encode
from minitransformer.training import mean_loss


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
    length = model.config.context_length
    whole, rest = divmod(len(tokens) - 1, length)
    starts = np.arange(whole) * length
    count = len(starts) + (rest > 0)
    nats = 0.0
    if whole:
        loss = mean_loss(model, tokens, starts, length, lambda done: progress(done, count))
        nats += loss * whole * length
    if rest:
        nats += mean_loss(model, tokens, np.array([whole * length]), rest) * rest
        progress(count, count)

    predicted = len(tokens) - 1
    content = text.encode("utf-8")
    predicted_bytes = len(content) - len(tokenizer.decode([int(tokens[0])]).encode("utf-8"))
    return {
        "val_loss": nats / predicted,
        "perplexity": math.exp(nats / predicted),
        "bits_per_byte": nats / math.log(2) / predicted_bytes,
        "xz_bits_per_byte": 8 * len(lzma.compress(content, preset=9)) / len(content),
        "tokens": predicted,
        "bytes": predicted_bytes,
    }
