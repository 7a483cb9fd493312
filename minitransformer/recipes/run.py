"""A whole training run: from a recipe and a corpus to a folder with a model, its record and its picture."""

import difflib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from minitransformer.data.corpus import CORPUS, corpus_of
from minitransformer.data.datasets import TokenWindows
from minitransformer.data.tasks import TASKS
from minitransformer.data.text import Text
from minitransformer.data.token_file import token_file
from minitransformer.data.tokenizer import (
    SPECIALS,
    TOKENIZER,
    id_count,
    load_tokenizer,
    save_tokenizer,
    start_id,
    train_tokenizer,
)
from minitransformer.errors import ChangedSettingError, DivergedError, InputError, Stopped
from minitransformer.inspection.plots import plot_training
from minitransformer.models import GPT
from minitransformer.recipes import PRETRAINED, pretrained_folder, recipe_from
from minitransformer.recipes.starting_model import load_pretrained, pretrained_tokenizer, resolved
from minitransformer.system.files import read_json, write_json
from minitransformer.training import Callback, Samples, Trainer
from minitransformer.training.checkpoints import checkpoints
from minitransformer.training.output import GENERATION, PICTURE, RUN, check_output_dir

SAMPLE_TOKENS = 200


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


class Display(Callback):
    """What a run tells whoever is watching; this one keeps silent."""

    def begin(self, recipe, trainer, material):
        """The run is about to start."""

    def preparing(self, what):
        """Return what is called with how much of ``what`` is done and of how much."""
        return lambda done, total: None

    def sample(self, text):
        """The model has written ``text``."""


def train_recipe(recipe, output_dir, data=(), device="cpu", display=None, resume=False):
    """Train ``recipe`` into ``output_dir``; return ``(model, material)``.

    ``data`` are the files, folders and patterns of a recipe whose corpus is ``"text"``; given to another
    recipe of text they replace its corpus. A recipe with ``pretrained`` starts from that model. The folder
    then holds the model in Hugging Face's layout, ``metrics.jsonl`` (an object a line), ``corpus.json`` (what
    was learned from), ``run.json`` (the settings), ``training.png`` and checkpoints, from the last of which
    ``resume`` continues.

    Raises InputError for data or a folder that can't be used, and, with the picture drawn so far, Stopped
    after Ctrl-C or SIGTERM and DivergedError when the loss is no longer finite.
    """
    display, output_dir = display or Display(), Path(output_dir)
    check_output_dir(output_dir, resume, recipe.training.overwrite_output_dir)
    kept = _kept_tokenizer(output_dir) if resume else None
    material = load_material(recipe, data, display, kept)
    if resume:
        _check_same_source(output_dir, material.source)
    args = replace(recipe.training, output_dir=str(output_dir), disable_tqdm=True)  # the display is all
    config = recipe.config(id_count(material.tokenizer))
    if recipe.pretrained is None or (resume and checkpoints(output_dir)):
        model = GPT(config).build(seed=args.seed, device=device)
    else:
        model, digest = load_pretrained(recipe.pretrained, config, device)
        recipe = replace(recipe, pretrained=replace(recipe.pretrained, sha256=digest))
    files = _Files(recipe, material, data)
    prompt = material.tokenizer.encode(material.prompt).ids or [start_id(material.tokenizer)]
    samples = Samples(
        material.tokenizer,
        prompt,
        display.sample,
        material.answer_length or SAMPLE_TOKENS,
        temperature=0.0 if material.answer_length else 0.8,
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=material.train,
        eval_dataset=material.validation,
        callbacks=[files, display, samples],
        settings={"recipe": recipe.name},
    )
    display.begin(recipe, trainer, material)
    try:
        trainer.train(resume_from_checkpoint=resume)
    except (DivergedError, Stopped):
        if trainer.step:
            _draw(trainer.history, output_dir / PICTURE)
        raise
    _draw(trainer.history, output_dir / PICTURE)
    return model, material


def _draw(history, path):
    """Draw the picture of a run; where that fails say so, for what was trained is worth more."""
    try:
        plot_training(history, path)
    except Exception as error:  # whatever is wrong with the library, the fonts or the disk
        warnings.warn(f"{PICTURE} was not drawn: {error}", RuntimeWarning, stacklevel=3)


def load_material(recipe, data=(), display=None, tokenizer=None):
    """Return the ``Material`` of ``recipe``, made from the texts ``data`` if any are given.

    ``tokenizer`` is one that was trained before, for the same text.
    """
    display = display or Display()
    if tokenizer is None and recipe.pretrained is not None:
        tokenizer = pretrained_tokenizer(recipe.pretrained)
    if recipe.corpus in TASKS:
        return _task_material(recipe, data, tokenizer)
    corpus = corpus_of(recipe.name, recipe.corpus, data)
    if not corpus.validation.byte_count:
        raise InputError("the text is too short: nothing of it is left to validate with")
    if tokenizer is None:
        whole = Text([*corpus.train.spans, *corpus.validation.spans])
        seen = whole if recipe.text.tokenizer == "characters" else corpus.train
        told = display.preparing("learning the tokenizer")
        tokenizer = train_tokenizer(recipe.text.tokenizer, recipe.text.vocabulary_size, seen, told)
    length = recipe.model["context_length"]
    tokens = [
        token_file(part, tokenizer, display.preparing("making tokens"))
        for part in (corpus.train, corpus.validation)
    ]
    if len(tokens[0]) <= length or len(tokens[1]) < 2:
        raise InputError(
            f"the text is too short: {len(tokens[0])} tokens to train on and {len(tokens[1])} "
            f"to validate with; sequences of context_length {length} need at least "
            f"{length + 1} and 2. Give more text or set a smaller context_length"
        )
    train, validation = (TokenWindows(part, length) for part in tokens)
    return Material(train, validation, tokenizer, corpus.source, "", corpus.validation)


def resumed_recipe(name, output_dir, assignments, data):
    """Return the recipe and the data of the run in ``output_dir``, ``assignments`` made.

    Raises InputError if there is no run, or one of another recipe than ``name`` (if given).
    """
    path = Path(output_dir) / RUN
    if not path.exists():
        raise InputError(f"there is no run in {output_dir} to go on with{_runs_nearby(output_dir)}")
    recorded = read_json(path)
    table = recorded.get("recipe") or {}
    earlier = recipe_from(table)
    recipe = recipe_from(table, _without_same_start(assignments, earlier.pretrained, output_dir))
    if recipe.text != earlier.text:
        raise ChangedSettingError(
            f"the run in {output_dir} has the text settings {earlier.text}; they cannot change to "
            f"{recipe.text}: start a new run in another folder"
        )
    paths = recorded.get("data")
    if not isinstance(paths, list) or not all(isinstance(part, str) for part in paths):
        raise InputError(f"{path} is damaged: data is {paths!r}")
    if name is not None and name != recipe.name:
        raise InputError(f"{output_dir} holds a run of the recipe {recipe.name!r}, not of {name!r}")
    return recipe, data or [Path(part) for part in paths]


def _without_same_start(assignments, pretrained, output_dir):
    """Return ``assignments`` without the model that the run started from; refuse any other."""
    folder = pretrained_folder(assignments)
    if folder is not None and (pretrained is None or resolved(folder) != pretrained.folder):
        started = "random weights" if pretrained is None else pretrained.folder
        raise ChangedSettingError(
            f"pretrained is {folder}, but the run in {output_dir} has started from {started}; "
            "start a new run in another folder"
        )
    return [part for part in assignments if part.partition("=")[0].strip() != PRETRAINED]


def _runs_nearby(output_dir):
    """Return a hint to the runs that could have been meant."""
    folder = Path(output_dir)
    if checkpoints(folder):
        return f": its checkpoints are not of the command line ({RUN} is missing); go on with it from Python"
    if (folder.parent / RUN).exists():
        return f"; did you mean {folder.parent}?"
    found = {path.parent.name: str(path.parent) for path in folder.parent.glob(f"*/{RUN}")}
    close = difflib.get_close_matches(folder.name, found, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(found[name] for name in close)}?"
    if found:
        return f"; there are {', '.join(sorted(found.values()))}"
    return "; leave out --resume to start one"


class _Files(Callback):
    """Writes what lies beside the weights wherever they are saved, and the record of the run at its start."""

    def __init__(self, recipe, material, data):
        self.recipe, self.material = recipe, material
        self.data = [str(Path(path).resolve()) for path in data]

    def on_train_begin(self, trainer):
        """Record what the run is, before its first step."""
        training = replace(self.recipe.training, overwrite_output_dir=False)  # once is enough
        table = replace(self.recipe, training=training).table()
        write_json(trainer.output_dir / RUN, {"recipe": table, "data": self.data})
        self.on_save(trainer, trainer.output_dir)

    def on_save(self, trainer, folder):
        """Write the tokenizer, the source, and how to generate."""
        tokenizer, context_length = self.material.tokenizer, trainer.model.config.context_length
        save_tokenizer(tokenizer, folder, context_length)
        write_json(folder / CORPUS, self.material.source)
        settings = {
            "bos_token_id": _start_for_transformers(tokenizer),
            "eos_token_id": None,  # nothing ends a text here
            "max_length": context_length + 1,  # transformers does not go on; the last token is not read
        }
        if self.material.answer_length:
            settings |= {"max_new_tokens": self.material.answer_length, "do_sample": False}
        write_json(folder / GENERATION, settings)


def _start_for_transformers(tokenizer):
    """Return what a text without a prompt starts after; None for padding, which transformers never sees."""
    start = start_id(tokenizer)
    return None if tokenizer.id_to_token(start) == SPECIALS["pad_token"] else start


def _task_material(recipe, data, tokenizer):
    if data:
        raise InputError(f"the recipe {recipe.name!r} makes its own examples; leave out --data")
    task = TASKS[recipe.corpus]()
    if recipe.pretrained is not None and tokenizer.get_vocab() != task.tokenizer.get_vocab():
        raise InputError(
            f"the model in {recipe.pretrained.folder} has other tokens than the task {recipe.name!r}; "
            "it can only start from a model of the same task"
        )
    longest, context_length = task.train.lengths.max(), recipe.model["context_length"]
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


def _kept_tokenizer(output_dir):
    """Return the tokenizer of the run that is resumed, or None if it has not come so far."""
    if checkpoints(output_dir) and (output_dir / TOKENIZER).exists():
        return load_tokenizer(output_dir)
    return None


def _check_same_source(output_dir, source):
    path = output_dir / CORPUS
    if not (path.exists() and checkpoints(output_dir)):
        return
    if read_json(path).get("sha256") != source.get("sha256"):
        raise InputError(
            f"the text has changed since {output_dir} was started, so the run cannot go on; "
            "start a new one in another folder"
        )
