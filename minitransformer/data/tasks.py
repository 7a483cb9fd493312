"""Generated tasks: a prompt of digits and its one right answer, some for validation."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from tokenizers import Tokenizer

from minitransformer.data.datasets import Sequences
from minitransformer.data.tokenizer import character_tokenizer, encode
from minitransformer.functional import IGNORED

SPLIT_SEED = 0  # the validation examples are the same in every run


@dataclass(frozen=True)
class Task:
    """Examples to train on and to validate with, the tokenizer, and the length of an answer."""

    train: Sequences
    validation: Sequences
    tokenizer: Tokenizer
    answer_length: int
    prompt: str


def sort_task():
    """Return minGPT's task of sorting six digits from 0 to 2, "201102" → "001122".

    A quarter of the 729 examples are for validation.
    """
    prompts = ["".join(digits) for digits in product("012", repeat=6)]
    answers = ["".join(sorted(prompt)) for prompt in prompts]
    return _make_task(prompts, answers, validation_count=len(prompts) // 4)


def addition_task():
    """Return minGPT's task of adding numbers of two digits, "8550" → "135".

    1000 of the 10,000 sums are for validation.
    """
    pairs = list(product(range(100), repeat=2))
    prompts = [f"{first:02}{second:02}" for first, second in pairs]
    return _make_task(prompts, [f"{first + second:03}" for first, second in pairs], validation_count=1000)


def _make_task(prompts, answers, validation_count):
    """Return the task of continuing each prompt with its answer; only answers are predicted."""
    tokenizer = character_tokenizer(prompts)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(prompts))
    examples = []
    for index in order:
        ids = encode(tokenizer, prompts[index] + answers[index])
        targets = ids[1:].copy()
        targets[: len(prompts[index]) - 1] = IGNORED
        examples.append((ids[:-1], targets))
    parts = (examples[validation_count:], examples[:validation_count])
    train, validation = (Sequences(*zip(*part, strict=True)) for part in parts)
    shown = next(prompts[index] for index in order if prompts[index] != answers[index])
    return Task(train, validation, tokenizer, len(answers[0]), shown)


TASKS = {"sort": sort_task, "addition": addition_task}
