"""Texts that tokenizers learn from, and texts that they are tried on."""

from hypothesis import strategies as st

from minitransformer.data.tokenizer import END_OF_TEXT

LEARNED = """Before we proceed any further, hear me speak.
You're all resolved rather to die than to famish? I'll we've DON'T
Naïve 😀 \t  日本語 2024, running jumping unwanted (x+1)==y;\r\n  !\x1c!\x1c!\x1c!\x0bcat\x0cdog
    def __init__(self):
        self.words = []


        self.letters = {}
        self.merges = []
"""
SIZES = {"characters": 0, "bpe": 360, "wordpiece": 140}
# what separates words, what only Python takes for a space, what BERT removes, marks, signs, and a separator
UNUSUAL = st.sampled_from(
    [*" \t\n\r\x0b\x0c\x1c\x1f\x85\xa0\u2028\u3000\u200b\x00'!a\u0301é日😀", END_OF_TEXT]
)
TEXTS = st.text() | st.lists(UNUSUAL | st.text(max_size=3), max_size=40).map("".join)
