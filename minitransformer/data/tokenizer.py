"""Tokenizers: text to token ids and back, with the ``tokenizers`` library and in its file format."""

import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from minitransformer.data.long_words import cut_long_words
from minitransformer.errors import InputError
from minitransformer.system.file_names import TOKENIZER, TOKENIZER_CONFIG
from minitransformer.system.files import write_atomically, write_json

KINDS = ("characters", "bpe", "wordpiece")
END_OF_TEXT = "<|endoftext|>"  # GPT-2's separator of documents
WORDPIECE_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # BERT's
SPECIALS = {  # by their names in transformers
    "bos_token": END_OF_TEXT,
    "eos_token": END_OF_TEXT,
    **{f"{token.strip('[]').lower()}_token": token for token in WORDPIECE_SPECIALS},
}
INSIDE = "##"  # WordPiece's prefix of tokens inside a word
CHUNK = 2**14  # characters encoded at a time: bounds the library's memory
CHUNKS = 8
LONGEST_WORD = 2**20  # characters; longer words are divided anywhere
NEW_WORD = re.compile(r"(?<=\S)(?=[ \t\n\r])")

# pre-tokenizers that split text at every NEW_WORD, and normalizers that keep this true
DROP_SPACES = pre_tokenizers.BertPreTokenizer, pre_tokenizers.Whitespace, pre_tokenizers.WhitespaceSplit
KEEP_SPACES = normalizers.NFC, normalizers.NFD, normalizers.Lowercase
CHANGE_SPACES = normalizers.NFKC, normalizers.NFKD, normalizers.StripAccents, normalizers.BertNormalizer


def train_tokenizer(kind, vocabulary_size, text, progress=lambda done, total: None):
    """Return a tokenizer for the ``Text`` ``text``: ``"characters"``, ``"bpe"`` or ``"wordpiece"``.

    ``"bpe"`` is GPT-2's byte-level pair encoding (Sennrich et al., arXiv 1508.07909), which decodes any text
    exactly. ``"wordpiece"`` is BERT's, in lower case. Both have ``vocabulary_size`` tokens, or fewer if the
    text does not have more. ``progress`` is called with the number of bytes read and their total.
    """
    if kind == "characters":
        return character_tokenizer(_report(text, progress))
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
    # a byte-pair model without merges encodes every character by itself
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(sorted(found))}, []))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def encode(tokenizer, text):
    """Return the ids of ``text``, an int64 array; raise InputError for characters without a token.

    They are the ids of the text alone: settings of ``tokenizer`` for truncation, padding and special tokens
    around a text are ignored (see ``strip_call_settings``).
    """
    return np.concatenate([np.empty(0, np.int64), *encode_pieces(tokenizer, [text])])


def encode_pieces(tokenizer, pieces):
    """Yield the ids of the text whose consecutive parts are ``pieces``, as int64 arrays of some ten thousand.

    If ``tokenizer`` may have tokens across words, the whole text is encoded at once.
    """
    tokenizer = strip_call_settings(tokenizer)
    known, anywhere = _find_known_characters(tokenizer), is_character_level(tokenizer)
    if not (anywhere or _splits_at_new_words(tokenizer)):
        text = "".join(pieces)
        _check_known(tokenizer, known, text)
        yield from _encode_chunks(tokenizer, [text])
        return
    rest = ""
    for piece in pieces:
        _check_known(tokenizer, known, piece)
        *chunks, rest = _divide(rest + piece, anywhere)
        yield from _encode_chunks(tokenizer, chunks)
    yield from _encode_chunks(tokenizer, [rest])


def encode_bytes(tokenizer, content):
    """Return the ids of any bytes, UTF-8 or not, by a byte-level tokenizer; inverse of ``decode_bytes``."""
    ids, tokenizer = [], strip_call_settings(tokenizer)
    for part in re.split("([\udc80-\udcff])", content.decode("utf-8", "surrogateescape")):
        if "\udc80" <= part <= "\udcff" and len(part) == 1:
            ids.append(tokenizer.token_to_id(LETTERS[ord(part) - 0xDC00]))
        else:
            ids += tokenizer.encode(part, add_special_tokens=False).ids
    return np.array(ids, np.int64)


def decode_bytes(tokenizer, ids):
    """Return the bytes of ``ids`` of a byte-level tokenizer, which may be parts of characters."""
    return b"".join(_decode_token(tokenizer, int(index)) for index in ids)


def token_byte_count(tokenizer, index):
    """Return the number of UTF-8 bytes of the token ``index``; 0 for a special token."""
    added = tokenizer.get_added_tokens_decoder().get(index)
    if added is not None:
        return 0 if added.special else len(added.content.encode("utf-8"))
    if is_byte_level(tokenizer):
        return len(_decode_token(tokenizer, index))
    token = tokenizer.decode([index])
    if isinstance(tokenizer.decoder, decoders.WordPiece):
        token = token.removeprefix(INSIDE)
    return len(token.encode("utf-8"))


def is_character_level(tokenizer):
    """Return True if every token is one character of the text, which may then be divided anywhere."""
    steps = tokenizer.normalizer, tokenizer.pre_tokenizer
    return steps == (None, None) and all(len(token) == 1 for token in tokenizer.get_vocab())


def is_byte_level(tokenizer):
    """Return True if the letters of a token represent bytes, as in GPT-2."""
    return isinstance(tokenizer.decoder, decoders.ByteLevel)


def is_reversible(tokenizer):
    """Return True if decoding the tokens of a text returns that text, for any text."""
    known = all(tokenizer.token_to_id(letter) is not None for letter in LETTERS)
    return tokenizer.normalizer is None and (
        (is_byte_level(tokenizer) and known) or _find_known_characters(tokenizer) is not None
    )


def id_count(tokenizer):
    """Return the number of ids, one more than the largest: the rows that an embedding table needs."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def separator_id(tokenizer):
    """Return the id of the token between documents, or None if the tokenizer has none."""
    return tokenizer.token_to_id(END_OF_TEXT)


def start_id(tokenizer):
    """Return the id of the token that precedes a text without a prompt: separator, newline, or else 0."""
    starts = (separator_id(tokenizer), tokenizer.token_to_id("\n"), 0)
    return next(index for index in starts if index is not None)


def load_tokenizer(folder):
    """Return the tokenizer in a trained model's ``folder``, without its call settings."""
    path = Path(folder) / TOKENIZER
    if not path.is_file():
        raise InputError(f"{path} is missing; a trained model's folder holds one")
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{path} is not a tokenizer file: {error}") from None
    _clear_call_settings(tokenizer)
    return tokenizer


def load_matching_tokenizer(folder, vocabulary_size):
    """Return the tokenizer of the model in ``folder``, which has this ``vocabulary_size``.

    Raises InputError as ``load_tokenizer`` does, or if there are more tokens (a padded vocabulary has fewer).
    """
    tokenizer = load_tokenizer(folder)
    if id_count(tokenizer) > vocabulary_size:
        raise InputError(
            f"{Path(folder) / TOKENIZER} has {id_count(tokenizer)} tokens, but its model's vocabulary_size "
            f"is {vocabulary_size}; the folder needs the tokenizer that the model was trained with"
        )
    return tokenizer


def save_tokenizer(tokenizer, folder, context_length):
    """Write ``tokenizer`` to ``folder``, so that ``AutoTokenizer`` of ``transformers`` gives the same ids.

    Without ``tokenizer_config.json`` beside ``tokenizer.json``, ``transformers`` would convert it to the
    usual tokenizer of models of this type. It warns of texts longer than ``context_length`` tokens.
    """
    folder = Path(folder)
    with write_atomically(folder / TOKENIZER) as temporary:
        temporary.write_text(strip_call_settings(tokenizer).to_str(pretty=True), encoding="utf-8")
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": bool(getattr(tokenizer.pre_tokenizer, "add_prefix_space", False)),
        **{name: token for name, token in SPECIALS.items() if token in added},
    }
    write_json(folder / TOKENIZER_CONFIG, settings)


def strip_call_settings(tokenizer):
    """Return ``tokenizer``, or a copy if it has settings that change a text's tokens in some calls.

    ``transformers`` leaves the truncation and padding of its last call in a tokenizer and in its file;
    post-processors add special tokens around a text; dropout makes its tokens random.
    """
    settings = tokenizer.truncation, tokenizer.padding, tokenizer.post_processor
    if settings != (None, None, None) or tokenizer.encode_special_tokens or _find_sampling(tokenizer.model):
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        _clear_call_settings(tokenizer)
    return tokenizer


def _clear_call_settings(tokenizer):
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    for name in _find_sampling(tokenizer.model):
        setattr(tokenizer.model, name, None)


def _find_sampling(model):
    """Return the names of the settings by which ``model`` splits words at random."""
    return [name for name in ("dropout", "alpha", "nbest_size") if getattr(model, name, None) is not None]


def _make_byte_letters():
    """Return GPT-2's letter for each byte: the visible ones themselves, the others from 256 on, in order."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, unseen = [], 0
    for byte in range(256):
        letters.append(chr(byte) if byte in seen else chr(256 + unseen))
        unseen += byte not in seen
    return letters


LETTERS = _make_byte_letters()
BYTES = {letter: bytes([byte]) for byte, letter in enumerate(LETTERS)}


def _decode_token(tokenizer, index):
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
    tokenizer.train_from_iterator(cut_long_words(_report(text, progress), "bpe"), trainer)
    return tokenizer


def _train_wordpiece(vocabulary_size, text, progress):
    """Read ``text`` twice: for its letters, then for its words.

    The library numbers the letters inside words in an order that differs between runs, and these numbers
    decide between equally frequent pairs. Given as special tokens, the letters keep their order.
    """
    letters = _wordpiece(_wordpiece_vocabulary(0, (), _report(text, progress, 0, 2)))
    _check_enough(vocabulary_size, letters.get_vocab_size(), "a wordpiece tokenizer of this text")
    inside = sorted(token for token in letters.get_vocab() if token.startswith(INSIDE))
    return _wordpiece(_wordpiece_vocabulary(vocabulary_size, inside, _report(text, progress, 1, 2)))


def _wordpiece_vocabulary(size, first, pieces):
    tokenizer = _wordpiece({})
    special = [*WORDPIECE_SPECIALS, *first]
    tokenizer.train_from_iterator(
        cut_long_words(pieces, "wordpiece"),
        trainers.WordPieceTrainer(vocab_size=size, special_tokens=special, show_progress=False),
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


def _report(text, progress, before=0, times=1):
    """Yield the pieces of ``text`` and call ``progress``; it has been read ``before`` of ``times`` times."""
    done = before * text.byte_count
    for piece in text.pieces():
        yield piece
        done += len(piece.encode("utf-8"))
        progress(done, times * text.byte_count)


def _find_known_characters(tokenizer):
    """Return the characters that have a token, or None if all have one or if this is unknown.

    A byte-pair model without a token for unknown characters omits them without an error.
    """
    model = tokenizer.model
    if not isinstance(model, models.BPE) or model.unk_token or model.byte_fallback:
        return None
    if (tokenizer.normalizer, tokenizer.pre_tokenizer) != (None, None):
        return None
    return {token for token in tokenizer.get_vocab(with_added_tokens=False) if len(token) == 1}


def _check_known(tokenizer, known, text):
    if known is None:
        return
    for added in tokenizer.get_added_tokens_decoder().values():
        text = text.replace(added.content, "")
    unknown = sorted(set(text) - known)
    if unknown:
        shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise InputError(
            f"the text has characters that the model never saw: {shown}{more}; "
            f"it knows {len(known)} characters"
        )


def _splits_at_new_words(tokenizer):
    """Return True if no token crosses NEW_WORD and words have the same tokens at the beginning of a text."""
    splitting, normalizer = tokenizer.pre_tokenizer, tokenizer.normalizer
    if isinstance(splitting, DROP_SPACES):
        harmless = *KEEP_SPACES, *CHANGE_SPACES
    elif isinstance(splitting, pre_tokenizers.ByteLevel):
        harmless = KEEP_SPACES
        if splitting.add_prefix_space or not splitting.use_regex:
            return False
    else:
        return False
    if normalizer is not None and not isinstance(normalizer, harmless):
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    return not any(token.rstrip or NEW_WORD.search(token.content) for token in added)


def _divide(text, anywhere):
    """Divide ``text`` where no token crosses; the last part may have to be joined with the next text."""
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


def _encode_chunks(tokenizer, chunks):
    for first in range(0, len(chunks), CHUNKS):
        batch = [chunk for chunk in chunks[first : first + CHUNKS] if chunk]
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            yield np.array(encoding.ids, np.int64)
