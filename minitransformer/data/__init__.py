"""Data: from text files and generated tasks to tokens, and from tokens to batches."""

from minitransformer.data.corpus import Corpus, python_corpus, text_corpus
from minitransformer.data.datasets import Sequences, TokenWindows
from minitransformer.data.tasks import TASKS, Task
from minitransformer.data.text import Text
from minitransformer.data.token_file import open_tokens, token_file
from minitransformer.data.tokenizer import (
    character_tokenizer,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

__all__ = [
    "TASKS",
    "Corpus",
    "Sequences",
    "Task",
    "Text",
    "TokenWindows",
    "character_tokenizer",
    "encode",
    "load_tokenizer",
    "open_tokens",
    "python_corpus",
    "save_tokenizer",
    "text_corpus",
    "token_file",
    "train_tokenizer",
]
