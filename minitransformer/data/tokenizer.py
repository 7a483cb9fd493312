"""Tokenizers: text to token ids and back, with the ``tokenizers`` library and in its file format."""

import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from minitransformer.errors import InputError

TOKENIZER = "tokenizer.json"
KINDS = ("characters", "bpe", "wordpiece")
END_OF_TEXT = "<|endoftext|>"  # GPT-2's: stands between documents
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's
INSIDE = "##"  # begins WordPiece's tokens that do not begin a word
CHUNK = 2**14  # characters encoded at a time: bounds the library's memory
CHUNKS = 8
LONGEST_WORD = 2**20  # characters: what is longer is no word, and may be cut anywhere
NEW_WORD = re.compile(r"(?<=\S)(?=[ \t\n\r])")  # no tokenizer here makes a token across this


def train_tokenizer(kind, vocabulary_size, text, progress=lambda done, total: None):
    """Return a tokenizer for the ``Text`` ``text``: ``"characters"``, ``"bpe"`` or ``"wordpiece"``.

    ``"bpe"`` is GPT-2's byte-level pair encoding (Sennrich et al., arXiv 1508.07909): any text comes back
    exactly. ``"wordpiece"`` is BERT's, in lower case. Both learn ``vocabulary_size`` tokens, fewer if the
    text has no more. ``progress`` is called with the bytes read and their number.
    """
    if kind == "characters":
        return character_tokenizer(_told(text, progress))
    if kind == "bpe":
        return _train_bpe(vocabulary_size, text, progress)
    if kind == "wordpiece":
        return _train_wordpiece(vocabulary_size, text, progress)
    raise InputError(f"tokenizer is {kind!r}; expected one of {', '.join(KINDS)}")


def character_tokenizer(pieces):
    """Return a tokenizer whose tokens are the distinct characters of the strings ``pieces``, sorted."""
    found = set()
    for piece in [pieces] if isinstance(pieces, str) else pieces:
        found.update(piece)
    # a byte-pair model without merges leaves every character as it is
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(sorted(found))}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def encode(tokenizer, text):
    """Return the ids of ``text``, an int64 array; raise InputError for characters it does not know."""
    return np.concatenate([np.empty(0, np.int64), *encode_pieces(tokenizer, [text])])


def encode_pieces(tokenizer, pieces):
    """Yield the ids of a text that comes in strings, ``pieces``, as int64 arrays of some ten thousand."""
    known = set(tokenizer.get_vocab()) if is_character_level(tokenizer) else None
    rest = ""
    for piece in pieces:
        if known is not None:
            _check_known(piece, known)
        *chunks, rest = _chunks(rest + piece, anywhere=known is not None)
        yield from _encoded(tokenizer, chunks)
    yield from _encoded(tokenizer, [rest])


def encode_bytes(tokenizer, content):
    """Return the ids of any bytes, UTF-8 or not, by a byte-level tokenizer; ``decode_bytes`` goes back."""
    ids = []
    for part in re.split("([\udc80-\udcff])", content.decode("utf-8", "surrogateescape")):
        if "\udc80" <= part <= "\udcff" and len(part) == 1:
            ids.append(tokenizer.token_to_id(LETTERS[ord(part) - 0xDC00]))
        else:
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return np.array(ids, np.int64)


def decode_bytes(tokenizer, ids):
    """Return the bytes that ``ids`` of a byte-level tokenizer stand for, whole characters or not."""
    return b"".join(_token_bytes(tokenizer, int(index)) for index in ids)


def token_byte_count(tokenizer, index):
    """Return how many bytes of UTF-8 text the token ``index`` stands for; a special token stands for none."""
    if index in tokenizer.get_added_tokens_decoder():
        return 0
    if is_byte_level(tokenizer):
        return len(_token_bytes(tokenizer, index))
    token = tokenizer.decode([index])
    if isinstance(tokenizer.decoder, decoders.WordPiece):
        token = token.removeprefix(INSIDE)
    return len(token.encode("utf-8"))


def is_character_level(tokenizer):
    """Return True if every token is one character and nothing else is done: text may be cut anywhere."""
    steps = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.truncation, tokenizer.padding
    return steps == (None,) * 4 and all(len(token) == 1 for token in tokenizer.get_vocab())


def is_byte_level(tokenizer):
    """Return True if the letters of a token stand for bytes, as in GPT-2."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)


def is_reversible(tokenizer):
    """Return True if the text comes back from its tokens as it was."""
    return not isinstance(tokenizer.decoder, decoders.WordPiece)


def separator_id(tokenizer):
    """Return the token that stands between documents; None if the tokenizer has none."""
    return tokenizer.token_to_id(END_OF_TEXT)


def start_id(tokenizer):
    """Return the token that a text without a prompt starts after: a separator, a newline, or else token 0."""
    starts = (separator_id(tokenizer), tokenizer.token_to_id("\n"), 0)
    return next(index for index in starts if index is not None)


def load_tokenizer(folder):
    """Return the tokenizer of a trained model's ``folder`` (its ``tokenizer.json``)."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise InputError(f"{path} is missing; a trained model's folder holds one")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is not a tokenizer file: {error}") from None


def _letters_of_bytes():
    """Return GPT-2's letter for each byte: itself where it can be seen, else one from 256 on, in order."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, unseen = [], 0
    for byte in range(256):
        letters.append(chr(byte) if byte in seen else chr(256 + unseen))
        unseen += byte not in seen
    return letters


LETTERS = _letters_of_bytes()
BYTES = {letter: bytes([byte]) for byte, letter in enumerate(LETTERS)}


def _token_bytes(tokenizer, index):
    token = tokenizer.id_to_token(index)
    if index in tokenizer.get_added_tokens_decoder():
        return token.encode("utf-8")
    return b"".join(BYTES[letter] for letter in token)


def _train_bpe(vocabulary_size, text, progress):
    _check_enough(vocabulary_size, 256 + 1, "a bpe tokenizer")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_told(text, progress), trainer)
    return tokenizer


def _train_wordpiece(vocabulary_size, text, progress):
    """Read ``text`` twice: for its letters, then for its words.

    The library numbers the letters inside words in an order that changes from run to run, and these numbers
    decide between equally frequent pairs. Given in order, as if they were special tokens, they stay.
    """
    letters = _wordpiece(_wordpiece_vocabulary(0, (), _told(text, progress, 0, 2)))
    _check_enough(vocabulary_size, letters.get_vocab_size(), "a wordpiece tokenizer of this text")
    inside = sorted(token for token in letters.get_vocab() if token.startswith(INSIDE))
    return _wordpiece(_wordpiece_vocabulary(vocabulary_size, inside, _told(text, progress, 1, 2)))


def _wordpiece_vocabulary(size, first, pieces):
    tokenizer = _wordpiece({})
    special = [*WORDPIECE_SPECIALS, *first]
    tokenizer.train_from_iterator(
        pieces, trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False)
    )
    return tokenizer.get_vocab()


def _wordpiece(vocabulary):
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in WORDPIECE_SPECIALS if token in vocabulary])
    return tokenizer


def _check_enough(vocabulary_size, least, what):
    if vocabulary_size < least:
        raise InputError(f"vocabulary_size is {vocabulary_size}; {what} has at least {least} tokens")


def _told(text, progress, before=0, times=1):
    """Yield the pieces of ``text``, which was read ``before`` times and will be read ``times`` in all."""
    done = before * text.byte_count
    for piece in text.pieces():
        yield piece
        done += len(piece.encode("utf-8"))
        progress(done, times * text.byte_count)


def _check_known(piece, known):
    unknown = sorted(set(piece) - known)
    if unknown:
        shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"the text has characters that the model never saw: {shown}{more}; "
            f"it knows {len(known)} characters"
        )


def _chunks(text, anywhere):
    """Cut ``text`` where no token can lie across; the last part may have to wait for what follows."""
    chunks, start = [], 0
    while len(text) - start > CHUNK:
        place = start + CHUNK
        if not anywhere:
            cut = NEW_WORD.search(text, place)
            if cut is None and len(text) - start < LONGEST_WORD:
                break
            place = cut.start() if cut else place
        chunks.append(text[start:place])
        start = place
    return [*chunks, text[start:]]


def _encoded(tokenizer, chunks):
    for first in range(0, len(chunks), CHUNKS):
        batch = [chunk for chunk in chunks[first : first + CHUNKS] if chunk]
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            yield np.array(encoding.ids, np.int64)
