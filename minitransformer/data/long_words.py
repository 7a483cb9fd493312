"""Long words cut for learning: to learn pairs takes time by the square of a word's length.

Text without spaces (DNA, base64, a table of digits) is one word to a tokenizer's pre-tokenization: of 200 kB
of DNA the library learns for 12 seconds, of 2 MB a hundred times as long; cut, for 0.2 and 2 seconds. Only
learning sees the cuts: the tokenizer that comes of it cuts nothing.
"""

import re

LONGEST = 256  # characters of a word that are learned from together

# what pre-tokenizers take for one word, about: GPT-2's a run of letters, of digits, of other signs or of
# spaces; BERT's a run of anything but spaces and signs
LONG_WORDS = {
    kind: re.compile("|".join(rf"(?<!{sign}){sign}{{{LONGEST + 1},}}" for sign in signs))
    for kind, signs in {
        "bpe": (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"),
        "wordpiece": (r"[^\x00-/:-@[-`{-\x7f]",),
    }.items()
}


def cut_long_words(pieces, kind):
    """Yield the strings ``pieces`` in parts, no word of which is longer than ``LONGEST``.

    ``kind`` is the tokenizer, ``"bpe"`` or ``"wordpiece"``; text of shorter words comes as it was.
    """
    for piece in pieces:
        start = 0
        for word in LONG_WORDS[kind].finditer(piece):
            for place in range(word.start() + LONGEST, word.end(), LONGEST):
                yield piece[start:place]
                start = place
        yield piece[start:]
