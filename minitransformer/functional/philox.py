"""Philox 4×32-10: random numbers as a pure function of a key and an index.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011). A counter of four 32-bit words is
scrambled by ten rounds under a key of two words. There is no generator state, so a dropout mask can be
computed again in the backward pass, in other tiles or on another machine, bit for bit.
"""

from typing import NamedTuple

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF


class Key(NamedTuple):
    """The key of a layer's random numbers: 64 bits of ``seed`` and a 32-bit ``stream``.

    The seed changes from step to step; the stream differs between the layers within a step.
    """

    seed: int
    stream: int = 0


def split_key(key, count):
    """Return ``count`` keys of different streams, for the parts of a layer that was given ``key``.

    For ``None``, which stands for evaluation, they are all None.
    """
    if key is None:
        return (None,) * count
    if not isinstance(key, Key):
        raise TypeError(
            f"key is a {type(key).__name__}; expected a Key, which turns dropout on, or None "
            "(a model's targets are part of its batch)"
        )
    return tuple(Key(key.seed, _mix(_mix(key.stream) + index + 1)) for index in range(count))


def _mix(word):
    """Scramble 32 bits one to one (the finaliser of MurmurHash3)."""
    word &= WORD
    word = (word ^ word >> 16) * 0x85EBCA6B & WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 & WORD
    return word ^ word >> 16


def philox(counter, key_words):
    """Return the four output words for ``counter``, four uint32 arrays that broadcast together.

    ``key_words`` are two 32-bit integers. Arrays are broadcast only in the round where they meet.
    """
    a, b, c, d = counter
    key0, key1 = key_words
    for _ in range(10):
        product0 = a.astype("uint64") * MULTIPLIERS[0]
        product1 = c.astype("uint64") * MULTIPLIERS[1]
        a, b, c, d = (
            (product1 >> 32).astype("uint32") ^ b ^ key0,
            product1.astype("uint32"),
            (product0 >> 32).astype("uint32") ^ d ^ key1,
            product0.astype("uint32"),
        )
        key0 = (key0 + WEYL[0]) & WORD
        key1 = (key1 + WEYL[1]) & WORD
    return a, b, c, d


def random_words(xp, key, shape):
    """Return uint32 words of ``shape``, an array of ``xp``: each is a function of ``key`` and its index.

    The entry at (…, i, j) is word j mod 4 of Philox at the counter (j // 4, i, n, stream), where n numbers
    the leading axes in C order (attention: b·H + h) and the key words are the seed's halves.
    """
    *leading, rows, columns = (1, 1, *shape)
    outer = 1
    for length in leading:
        outer *= length
    blocks = -(-columns // 4)
    counter = (
        xp.arange(blocks, dtype="uint32"),
        xp.arange(rows, dtype="uint32")[:, None],
        xp.arange(outer, dtype="uint32")[:, None, None],
        xp.full((1, 1, 1), key.stream, dtype="uint32"),
    )
    words = xp.empty((outer, rows, blocks, 4), "uint32")
    for lane, word in enumerate(philox(counter, (key.seed & WORD, key.seed >> 32 & WORD))):
        words[..., lane] = word
    return words.reshape(outer, rows, blocks * 4)[..., :columns].reshape(shape)


def keep_mask(xp, key, shape, rate):
    """Return booleans of ``shape``: False with probability ``rate``, compared as integers.

    Integers compare alike on every device; floats might be rounded differently.
    """
    return random_words(xp, key, shape) >= round(rate * 2**32)
