"""Generation: tokens are sampled one after another from the distribution that the model predicts."""

import itertools

import numpy as np
from tokenizers import Tokenizer

from minitransformer.arrays import array_module, to_numpy
from minitransformer.data.tokenizer import encode, start_id
from minitransformer.dispatch import has_cpu_kernels, inference
from minitransformer.errors import InputError
from minitransformer.generation.streaming import decode_pieces, truncate_at_stops

WORTH_PACKING = 30_000_000  # parameters; the products of smaller models take about as long by NumPy
DECIMALS = 12  # of cumulative probabilities: differences beyond are rounding errors


def generate(
    model,
    prompt,
    max_new_tokens=200,
    *,
    tokenizer=None,
    temperature=1.0,
    top_k=None,
    top_p=None,
    seed=0,
    stop=None,
    vocabulary_size=None,
    use_cache=True,
):
    """Return an iterator over the continuation of ``prompt``, of at most ``max_new_tokens`` tokens.

    For a prompt of token ids (one row of integers, at least one) it yields token ids; for a text, which needs
    the model's ``tokenizer``, pieces of text: the whole text is
    ``prompt + "".join(generate(model, prompt, tokenizer=tokenizer))``. An empty text generates from the
    beginning of a text.

    ``temperature`` divides the logits: below 1 makes the distribution sharper, so that likely tokens are
    sampled more often, above 1 flatter; at 0 the likeliest token is always taken. ``top_k`` keeps the k
    likeliest tokens, ``top_p`` the fewest whose probabilities sum to at least p (arXiv 1904.09751). ``stop``
    is a token id or a text, or a list of them: generation ends before the first that occurs (ids end before
    the token in which the text begins). Only tokens of the ``tokenizer``, if given, and ids below
    ``vocabulary_size`` are sampled, so that the rows of a padded vocabulary are excluded.

    When the context is full, its older half is discarded. With ``use_cache`` a step computes only its own
    token; without, it recomputes the whole context, with the same result.

    Raises InputError for invalid arguments, before anything is computed.
    """
    check_sampling(max_new_tokens, temperature, top_k, top_p, seed)
    rows = model.config.vocabulary_size
    tokenizer = _check_tokenizer(tokenizer)
    ids = before = _encode_prompt(prompt, tokenizer, rows)
    if not ids:
        ids = [start_id(tokenizer)]
    stop_ids, stop_texts = _split_stops(stop, tokenizer, rows)
    drawn = _find_drawable(tokenizer, vocabulary_size, rows)
    tokens = _generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, drawn, use_cache)
    if stop_ids:
        tokens = itertools.takewhile(lambda token: token not in stop_ids, tokens)
    if isinstance(prompt, str):
        pieces = truncate_at_stops(stop_texts, decode_pieces(tokenizer, before, tokens))
        return (text for _, text in pieces if text)
    if stop_texts:
        pieces = truncate_at_stops(stop_texts, decode_pieces(tokenizer, before, tokens))
        return (token for part, _ in pieces for token in part)
    return tokens


def prepare_decoding(model, weights="float32"):
    """Return a model to generate many tokens with: ``model.for_decoding(weights)``, or ``model`` itself.

    ``weights`` is ``"float32"``, ``"bfloat16"`` or ``"int8"``. For float32 a model is packed where that is
    worth its time: a large one, on the CPU, with kernels.
    """
    if weights == "float32":
        on_cpu, large = array_module(model.flat.values) is np, model.parameter_count() >= WORTH_PACKING
        if not (on_cpu and large and has_cpu_kernels()):
            return model
    return model.for_decoding(weights)


def _generate(model, ids, max_new_tokens, temperature, top_k, top_p, seed, drawn, use_cache):
    """Yield tokens sampled among ``drawn``, an array of ids."""
    random = np.random.default_rng(seed)
    xp = array_module(model.flat.values)
    context = ids[-model.config.context_length :]
    cache, unseen = model.cache(1) if use_cache else None, context
    for _ in range(max_new_tokens):
        if len(context) > model.config.context_length:
            context = context[-(model.config.context_length // 2 or 1) :]
            cache, unseen = model.cache(1) if use_cache else None, context
        with inference():
            batch = {"ids": xp.asarray([unseen if use_cache else context])}
            h, _ = model.hidden(batch, cache=cache)
            logits, _ = model.head(h[:, -1])
        probabilities = compute_probabilities(to_numpy(logits[0])[drawn], temperature, top_k, top_p)
        token = int(drawn[random.choice(len(drawn), p=probabilities)])
        context, unseen = [*context, token], [token]
        yield token


def compute_probabilities(logits, temperature=1.0, top_k=None, top_p=None):
    """Return the probabilities (V,) in float64 that tokens are sampled with, given their ``logits`` (V,)."""
    logits = logits.astype(np.float64)
    if not np.isfinite(logits).all():
        raise InputError("the model's logits are not all finite: its weights have diverged or are damaged")
    if temperature == 0:
        probabilities = np.zeros_like(logits)
        probabilities[np.argmax(logits)] = 1
        return probabilities
    logits = (logits - logits.max()) / temperature
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum()
    if top_k is not None and top_k < len(logits):
        probabilities = _keep(probabilities, _find_largest(logits, top_k))
    if top_p is not None and top_p < 1:
        # tokens below their share of what may be left out are not among the likeliest: they are not sorted
        candidates = np.flatnonzero(probabilities * len(logits) >= min(1 - top_p, 0.5))
        order = candidates[np.argsort(-logits[candidates], kind="stable")]
        before = np.cumsum(probabilities[order])[:-1]  # the sum over likelier tokens, for all but the first
        reached = np.round(before, DECIMALS) >= np.round(top_p, DECIMALS)
        probabilities = _keep(probabilities, np.append(order[:1], order[1:][~reached]))
    return probabilities


def _find_largest(numbers, count):
    """Return the indices of the ``count`` largest of ``numbers``; of equal ones the first."""
    least = np.partition(numbers, -count)[-count]
    above = np.flatnonzero(numbers > least)
    return np.concatenate((above, np.flatnonzero(numbers == least)[: count - len(above)]))


def _keep(probabilities, ids):
    """Return the probabilities of ``ids``, which sum to 1, and 0 for the others."""
    kept = np.zeros_like(probabilities)
    kept[ids] = probabilities[ids]
    return kept / kept.sum()


def check_sampling(max_new_tokens, temperature, top_k, top_p, seed):
    """Raise InputError for settings of a wrong type or out of range."""
    top_k, top_p = 1 if top_k is None else top_k, 1.0 if top_p is None else top_p
    for name, value, least in (("seed", seed, 0), ("max_new_tokens", max_new_tokens, 0), ("top_k", top_k, 1)):
        if not _is_integer(value):
            raise InputError(f"{name} is {value!r}; expected an integer")
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")
    for name, value in (("temperature", temperature), ("top_p", top_p)):
        if not (_is_integer(value) or isinstance(value, float | np.floating)):
            raise InputError(f"{name} is {value!r}; expected a number")
    if not 0 <= temperature < np.inf:
        raise InputError(f"temperature is {temperature}; expected a finite number of at least 0")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected more than 0 and at most 1")


def _encode_prompt(prompt, tokenizer, rows):
    """Return the ids of ``prompt`` as a list of ints, empty for an empty text."""
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InputError(
                "the prompt is text, which needs the model's tokenizer: give tokenizer=load_tokenizer(DIR)"
            )
        ids = encode(tokenizer, prompt).tolist()
    else:
        ids = list(prompt) if isinstance(prompt, list | tuple) else np.asarray(to_numpy(prompt)).tolist()
        if not isinstance(ids, list):
            raise InputError(f"the prompt is a {type(prompt).__name__}; expected text or a row of token ids")
        if not ids:
            raise InputError("the prompt is empty; expected at least one token to continue from")
    for index in ids:
        if isinstance(index, list | tuple | np.ndarray):
            raise InputError(
                "the prompt has several rows; expected one row of ids: one text is continued per call"
            )
        if not _is_integer(index):
            raise InputError(f"the prompt has {index!r} where a token id is expected, an integer")
        if not 0 <= index < rows:
            raise InputError(f"the prompt has the id {index}; the model knows 0 to {rows - 1}")
    return [int(index) for index in ids]


def _check_tokenizer(tokenizer):
    """Return ``tokenizer``, or the one that a tokenizer of ``transformers`` wraps; None for None."""
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"the tokenizer is a {type(tokenizer).__name__}; expected one as load_tokenizer(DIR) returns it"
        )
    return tokenizer


def _split_stops(stop, tokenizer, rows):
    """Return the ids and the texts among ``stop``."""
    if stop is None:
        return set(), []
    stops = [stop] if isinstance(stop, str) or not hasattr(stop, "__iter__") else list(stop)
    ids, texts = set(), []
    for each in stops:
        if isinstance(each, str) and each:
            texts.append(each)
        elif _is_integer(each) and 0 <= each < rows:
            ids.add(int(each))
        else:
            raise InputError(f"stop is {each!r}; expected text, or a token id of 0 to {rows - 1}")
    if texts and tokenizer is None:
        raise InputError(f"stop is the text {texts[0]!r}, which needs tokenizer=load_tokenizer(DIR)")
    return ids, texts


def _find_drawable(tokenizer, vocabulary_size, rows):
    """Return the ids that may be sampled."""
    if vocabulary_size is not None and not (_is_integer(vocabulary_size) and 1 <= vocabulary_size <= rows):
        raise InputError(f"vocabulary_size is {vocabulary_size!r}; expected 1 to {rows}, the model's")
    ids = np.arange(vocabulary_size or rows)
    if tokenizer is not None:
        ids = np.intersect1d(ids, list(tokenizer.get_vocab().values()))
    if len(ids) == 0:
        raise InputError(
            "no token of the tokenizer is in the model's vocabulary; give the one that it was trained with"
        )
    return ids


def _is_integer(value):
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
