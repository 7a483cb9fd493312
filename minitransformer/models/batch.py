"""What a model can be called with, also as in PyTorch and in Hugging Face, and the batch that it means."""

from collections.abc import Mapping

import numpy as np

from minitransformer.arrays import array_module
from minitransformer.errors import InputError
from minitransformer.system.settings import suggest

KNOWN = ("ids", "targets", "lengths")
LABELS = (
    "the batch has labels, which Hugging Face's models shift by one themselves; here targets are given, for "
    "each token the one that follows: ids[:, :-1] and targets = labels[:, 1:]"
)


def make_batch(xp, given):
    """Return the batch that ``given`` means, its arrays in ``xp``; raise InputError where it means none.

    ``given`` is a dictionary with ``ids`` (B, T), or these alone, as an array or lists. ``input_ids`` will do
    for ``ids``, and an ``attention_mask`` (B, T) that hides padding on the right for ``lengths``.
    """
    given = dict(given) if isinstance(given, Mapping) else {"ids": given}
    if "input_ids" in given and "ids" not in given:
        given["ids"] = given.pop("input_ids")
    visible = given.pop("attention_mask", None)
    if "labels" in given:
        raise InputError(LABELS)
    for name in given:
        if name not in KNOWN:
            raise InputError(f"there is nothing called {name!r} in a batch{suggest(str(name), KNOWN)}")
    if "ids" not in given:
        raise InputError(f"the batch has no ids; there are {', '.join(map(str, given)) or 'nothing'}")

    batch = {name: _convert_integers(xp, name, part) for name, part in given.items()}
    shape = batch["ids"].shape
    if len(shape) != 2:
        one = "; give [ids] for one sequence" if len(shape) == 1 else ""
        raise InputError(f"ids have shape {shape}; expected (B, T), a row for each sequence{one}")
    if visible is not None:
        lengths = _count_visible(_convert_integers(xp, "attention_mask", visible), shape)
        if "lengths" in batch:
            raise InputError("the batch has lengths and an attention_mask; give one of them")
        if lengths is not None:
            batch["lengths"] = lengths
    for name, expected in (("targets", shape), ("lengths", shape[:1])):
        if name in batch and batch[name].shape != expected:
            raise InputError(f"{name} have shape {batch[name].shape} beside ids {shape}; expected {expected}")
    _check_lengths(batch.get("lengths"), shape[1])
    return batch


def _convert_integers(xp, name, part):
    """Return ``part`` as an array of integers in ``xp``."""
    try:
        array = xp.asarray(part)
    except ValueError:
        raise InputError(
            f"the rows of {name} have unequal lengths; pad them on the right and give their lengths"
        ) from None
    if array.dtype.kind not in ("iub" if name == "attention_mask" else "iu"):
        raise InputError(f"{name} have type {array.dtype.name}; expected integers")
    return array


def _check_lengths(lengths, longest):
    """Raise InputError for lengths that no row has (on the CPU; a GPU is not asked to wait for this)."""
    if array_module(lengths) is np and lengths is not None and lengths.size:
        for length in (lengths.min(), lengths.max()):
            if not 0 <= length <= longest:
                raise InputError(f"a row's length is {length}; expected 0 to {longest}, the length of ids")


def _count_visible(visible, shape):
    """Return how many tokens of each row the attention mask ``visible`` shows; None if it shows all."""
    if visible.shape != shape:
        raise InputError(f"attention_mask has shape {visible.shape} beside ids {shape}; expected the same")
    xp = array_module(visible)
    lengths = (visible != 0).sum(axis=1)
    if bool(((visible != 0) != (xp.arange(shape[1]) < lengths[:, None])).any()):
        raise InputError(
            "attention_mask hides tokens that others follow; padding can be on the right only "
            "(in Hugging Face's tokenizers: padding_side='right')"
        )
    return None if bool((lengths == shape[1]).all()) else lengths
