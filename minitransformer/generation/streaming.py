"""Incremental decoding: a stream of token ids becomes a stream of text, truncated at stop texts."""

import itertools

from minitransformer.data.tokenizer import encode, is_reversible

UNFINISHED = "\ufffd"  # decoded from an incomplete UTF-8 sequence


def stream_text(tokenizer, prompt_ids, new_ids):
    """Yield the text of ``prompt_ids`` and then of ``new_ids``, in pieces, as soon as it is known.

    The pieces joined are ``tokenizer.decode(all ids, skip_special_tokens=False)``: there is no space inside a
    word that the prompt begins, and incomplete UTF-8 at the end becomes U+FFFD.
    """
    for _, text in decode_pieces(tokenizer, [], itertools.chain(prompt_ids, new_ids)):
        yield text


def decode_pieces(tokenizer, before, new_ids):
    """Yield lists of ``new_ids``, each with the text that it appends to the text of the ids ``before``.

    A list ends where its text ends with a complete character; the last one may not.
    """

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=False)

    context, part = [int(index) for index in before], []
    known = len(decode(context))
    for index in new_ids:
        part.append(int(index))
        text = decode(context + part)[known:]
        if text and not text.endswith(UNFINISHED):
            yield part, text
            context, part = part[-1:], []  # later text depends on one earlier token at most
            known = len(decode(context))
    if part:
        yield part, decode(context + part)[known:]


def truncate_at_stops(stops, pieces):
    """Yield ids and text, as in ``pieces``, up to the first of the texts ``stops``, which is excluded.

    Text that may begin a stop is buffered until the next pieces decide it; ids are yielded with the end of
    their text.
    """
    waiting, text = [], ""  # each id with the position where its text ends
    for ids, more in pieces:
        text += more
        waiting += [(index, len(text)) for index in ids]
        place, found = _find_stop(text, stops)
        yield [index for index, end in waiting if end <= place], text[:place]
        if found:
            return
        waiting = [(index, end - place) for index, end in waiting if end > place]
        text = text[place:]
    yield [index for index, _ in waiting], text


def decode_prompt(tokenizer, prompt):
    """Return ``prompt`` as the beginning of its continuation: unchanged if ``tokenizer`` is reversible.

    Otherwise, as for WordPiece, which discards case and spacing, its tokens are decoded.
    """
    if is_reversible(tokenizer):
        return prompt
    return tokenizer.decode(encode(tokenizer, prompt), skip_special_tokens=False)


def _find_stop(text, stops):
    """Return the start of the stop that ends first in ``text`` and True, or where one may begin and False."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        return min(found)[1], True
    return len(text) - max((_count_overlap(text, stop) for stop in stops), default=0), False


def _count_overlap(text, stop):
    """Return the length of the longest suffix of ``text`` that is a proper prefix of ``stop``."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
