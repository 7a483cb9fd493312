"""What a recipe learns from: its text or its task, as datasets and a tokenizer."""

from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from minitransformer.data.corpus import load_corpus
from minitransformer.data.tasks import TASKS
from minitransformer.data.text import Text
from minitransformer.data.token_file import token_file
from minitransformer.data.tokenizer import train_tokenizer
from minitransformer.errors import InputError
from minitransformer.recipes.display import Display
from minitransformer.recipes.starting_model import load_pretrained_tokenizer


@dataclass(frozen=True)
class Material:
    """What a recipe learns from: datasets, tokenizer, the record of their source, and a text to begin with.

    ``validation_text`` is the text behind ``validation``; a task has none, but ``answer_length``.
    """

    train: Any
    validation: Any
    tokenizer: Tokenizer
    source: dict
    prompt: str
    validation_text: Text | None = None
    answer_length: int | None = None


def load_material(recipe, data=(), display=None, tokenizer=None):
    """Return the ``Material`` of ``recipe``, made from the texts ``data`` if any are given.

    ``tokenizer`` is one that was trained before, for the same text.
    """
    display = display or Display()
    if tokenizer is None and recipe.pretrained is not None:
        tokenizer = load_pretrained_tokenizer(recipe.pretrained)
    if recipe.corpus in TASKS:
        return _load_task_material(recipe, data, tokenizer)
    corpus = load_corpus(recipe.name, recipe.corpus, data)
    if not corpus.validation.byte_count:
        raise InputError("the text is too short: nothing of it is left to validate with")
    if tokenizer is None:
        whole = Text([*corpus.train.spans, *corpus.validation.spans])
        seen = whole if recipe.text.tokenizer == "characters" else corpus.train
        progress = display.track("learning the tokenizer")
        tokenizer = train_tokenizer(recipe.text.tokenizer, recipe.text.vocabulary_size, seen, progress)
    length = recipe.model.context_length
    tokens = [
        token_file(part, tokenizer, display.track("making tokens"))
        for part in (corpus.train, corpus.validation)
    ]
    if len(tokens[0]) <= length or len(tokens[1]) < 2:
        raise InputError(
            f"the text is too short: {len(tokens[0])} tokens to train on and {len(tokens[1])} "
            f"to validate with; sequences of context_length {length} need at least "
            f"{length + 1} and 2. Give more text or set a smaller context_length"
        )
    train, validation = (recipe.architecture.text_dataset(part, length) for part in tokens)
    return Material(train, validation, tokenizer, corpus.source, "", corpus.validation)


def _load_task_material(recipe, data, tokenizer):
    if data:
        raise InputError(f"the recipe {recipe.name!r} makes its own examples; leave out --data")
    task = TASKS[recipe.corpus]()
    if recipe.pretrained is not None and tokenizer.get_vocab() != task.tokenizer.get_vocab():
        raise InputError(
            f"the model in {recipe.pretrained.folder} has other tokens than the task {recipe.name!r}; "
            "it can only start from a model of the same task"
        )
    longest, context_length = task.train.lengths.max(), recipe.model.context_length
    if longest > context_length:
        raise InputError(
            f"context_length is {context_length}; the examples of {recipe.name!r} have {longest} tokens"
        )
    return Material(
        train=task.train,
        validation=task.validation,
        tokenizer=task.tokenizer,
        source={"corpus": recipe.corpus},
        prompt=task.prompt,
        answer_length=task.answer_length,
    )
