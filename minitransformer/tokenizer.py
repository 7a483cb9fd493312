"""Tokenizers: text to token ids and back, with the ``tokenizers`` library and in its file format."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models

from minitransformer.errors import InputError

TOKENIZER = "tokenizer.json"
CHUNK = 2**14  # characters encoded at a time: bounds the library's memory
CHUNKS = 8


def character_tokenizer(text):
    """Return a tokenizer whose tokens are the distinct characters of ``text``, sorted."""
    characters = sorted(set(text))
    # a byte-pair model without merges leaves every character as it is
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(characters)}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def encode(tokenizer, text):
    """Return the ids of ``text``, an int64 array; raise InputError for characters it does not know."""
    if not is_character_level(tokenizer):
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    unknown = sorted(set(text) - set(tokenizer.get_vocab()))
    if unknown:
        shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"the text has characters that the model never saw: {shown}{more}; "
            f"it knows {tokenizer.get_vocab_size()} characters"
        )
    parts = [np.empty(0, np.int64)]
    for start in range(0, len(text), CHUNK * CHUNKS):
        part = text[start : start + CHUNK * CHUNKS]
        chunks = [part[first : first + CHUNK] for first in range(0, len(part), CHUNK)]
        for encoding in tokenizer.encode_batch(chunks, add_special_tokens=False):
            parts.append(np.array(encoding.ids, np.int64))
    return np.concatenate(parts)


def is_character_level(tokenizer):
    """Return True if every token is one character and nothing else is done: text may be cut anywhere."""
    steps = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.truncation, tokenizer.padding
    return steps == (None,) * 4 and all(len(token) == 1 for token in tokenizer.get_vocab())


def load_tokenizer(folder):
    """Return the tokenizer of a trained model's ``folder`` (its ``tokenizer.json``)."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise InputError(f"{path} is missing; a trained model's folder holds one")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is not a tokenizer file: {error}") from None
