"""Long words are divided before a tokenizer is trained: the time for a word is quadratic in its length.

Text without spaces (DNA, base64, a table of digits) is one word to a tokenizer's pre-tokenization: training
on 200 kB of DNA takes 12 seconds and on 2 MB a hundred times as long; divided into shorter words, 0.2 and 2
seconds. Only training sees the divided words: the trained tokenizer divides nothing.
"""

import re

LONGEST = 256  # characters of a word

# about what a pre-tokenizer takes for one word: GPT-2's a run of letters, of digits, of other signs or of
# spaces; BERT's a run of anything but spaces and signs
LONG_WORDS = {
    kind: re.compile("|".join(rf"(?<!{sign}){sign}{{{LONGEST + 1},}}" for sign in signs))
    for kind, signs in {
        "bpe": (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"),
        "wordpiece": (r"[^\x00-/:-@[-`{-\x7f]",),
    }.items()
}


def cut_long_words(pieces, kind):
    """Yield the strings ``pieces``, divided so that no word is longer than ``LONGEST``.

    ``kind`` is the tokenizer, ``"bpe"`` or ``"wordpiece"``.
    """
    for piece in pieces:
        start = 0
        for word in LONG_WORDS[kind].finditer(piece):
            for place in range(word.start() + LONGEST, word.end(), LONGEST):
                yield piece[start:place]
                start = place
        yield piece[start:]
