"""Text from ids that come one after the other: one stream from the first to the last, and where it stops."""

import itertools

from minitransformer.data.tokenizer import encode, is_reversible

UNFINISHED = "\ufffd"  # how a character is decoded whose bytes have not all come


def stream_text(tokenizer, prompt_ids, new_ids):
    """Yield the text of ``prompt_ids`` and then of ``new_ids``, in pieces, as they come.

    The pieces joined are ``tokenizer.decode(all ids, skip_special_tokens=False)``: a word that the prompt
    begins goes on without a space, and bytes at the end that are no whole character become U+FFFD.
    """
    for _, text in decode_pieces(tokenizer, [], itertools.chain(prompt_ids, new_ids)):
        yield text


def decode_pieces(tokenizer, before, new_ids):
    """Yield the ids ``new_ids`` in lists, each with the text that it adds to the text of the ids ``before``.

    A list grows until its text is made of whole characters; at the end it is given as it is.
    """

    def open_text(ids):
        return tokenizer.decode(ids, skip_special_tokens=False)

    context, part = [int(index) for index in before], []
    told = len(open_text(context))
    for index in new_ids:
        part.append(int(index))
        text = open_text(context + part)[told:]
        if text and not text.endswith(UNFINISHED):
            yield part, text
            context, part = part[-1:], []  # whatever comes next depends on one token at most
            told = len(open_text(context))
    if part:
        yield part, open_text(context + part)[told:]


def truncate_at_stops(stops, pieces):
    """Yield ids and text, as in ``pieces``, up to the first of the texts ``stops``, which is left out.

    Text that may be the beginning of a stop is held back until more has come; ids wait for all of their text.
    """
    waiting, text = [], ""  # each id with the place where its text ends
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
    """Return how the text that continues ``prompt`` begins: as it was given, if its tokens are reversible.

    WordPiece gives up case and spacing; there it is the text of its tokens, which the continuation fits.
    """
    if is_reversible(tokenizer):
        return prompt
    return tokenizer.decode(encode(tokenizer, prompt), skip_special_tokens=False)


def _find_stop(text, stops):
    """Return where in ``text`` the stop begins that is complete first, and True; else where one may begin."""
    found = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    if found:
        return min(found)[1], True
    return len(text) - max((_count_overlap(text, stop) for stop in stops), default=0), False


def _count_overlap(text, stop):
    """Return how many characters at the end of ``text`` are the beginning of ``stop``."""
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(stop[:length])), 0)
