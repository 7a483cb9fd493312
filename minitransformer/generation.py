"""Generation: one token after the other, each drawn from what the model expects."""

import numpy as np

from minitransformer.arrays import array_module, to_numpy
from minitransformer.dispatch import inference
from minitransformer.errors import InputError


def generate(
    model,
    ids,
    max_new_tokens,
    *,
    temperature=1.0,
    top_k=None,
    top_p=None,
    seed=0,
    use_cache=True,
    vocabulary_size=None,
):
    """Return an iterator over ``max_new_tokens`` token ids that continue ``ids`` (at least one id).

    ``temperature`` divides the logits: below 1 bolder, at 0 always the likeliest token. ``top_k`` keeps the k
    likeliest tokens, ``top_p`` the fewest whose probabilities reach p (arXiv 1904.09751). When the context
    is full, its older half is forgotten. With ``use_cache`` a step computes only its own token; without, the
    whole context again, with the same result. Only ids below ``vocabulary_size`` are drawn: a model may have
    more rows than its tokenizer has tokens.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    if len(ids) == 0:
        raise InputError("the prompt is empty; expected at least one token to continue from")
    if vocabulary_size is not None and vocabulary_size < 1:
        raise InputError(f"vocabulary_size is {vocabulary_size}; expected at least 1")
    return _generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, use_cache, vocabulary_size)


def _generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, use_cache, vocabulary_size):
    random = np.random.default_rng(seed)
    xp = array_module(model.flat.values)
    context = list(ids)[-model.config.context_length :]
    cache, unseen = model.cache(1) if use_cache else None, context
    for _ in range(max_new_tokens):
        if len(context) > model.config.context_length:
            context = context[-(model.config.context_length // 2 or 1) :]
            cache, unseen = model.cache(1) if use_cache else None, context
        with inference():
            batch = {"ids": xp.asarray([unseen if use_cache else context])}
            h, _ = model.hidden(batch, cache=cache)
            logits, _ = model.head(h[:, -1])
        probabilities = token_probabilities(to_numpy(logits[0, :vocabulary_size]), temperature, top_k, top_p)
        token = int(random.choice(len(probabilities), p=probabilities))
        context, unseen = [*context, token], [token]
        yield token


def token_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """Return the probabilities (V,) that a token is drawn with, in float64, given its ``logits`` (V,)."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise InputError("the model's logits are not all finite numbers: its weights are of no use")
    if temperature == 0:
        probabilities = np.zeros_like(logits)
        probabilities[np.argmax(logits)] = 1
        return probabilities
    logits = (logits - logits.max()) / temperature
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits)
    if top_k is not None:
        probabilities[order[top_k:]] = 0
    probabilities /= probabilities.sum()
    if top_p is not None:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before >= top_p]] = 0
        probabilities /= probabilities.sum()
    return probabilities


def check_sampling(max_new_tokens, temperature, top_k, top_p, seed):
    """Raise InputError for settings that mean nothing."""
    if seed < 0:
        raise InputError(f"seed is {seed}; expected at least 0")
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}; expected at least 0")
    if not 0 <= temperature < np.inf:
        raise InputError(f"temperature is {temperature}; expected a finite number of at least 0")
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}; expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected more than 0 and at most 1")
