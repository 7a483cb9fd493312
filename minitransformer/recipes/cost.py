"""The predicted cost of a recipe on this machine: counted where possible, else measured for two seconds."""

from typing import NamedTuple

import numpy as np

from minitransformer.data.corpus import load_corpus
from minitransformer.data.tasks import TASKS
from minitransformer.data.tokenizer import character_tokenizer, is_character_level
from minitransformer.evaluation.scores import SAMPLED_PLACES, batch_rows
from minitransformer.recipes.calibration import (
    Measurement,
    calibrate,
    calibrate_alone,
    count_threads,
    measure_free_share,
)
from minitransformer.recipes.run import SAMPLE_TOKENS
from minitransformer.recipes.starting_model import load_pretrained_tokenizer
from minitransformer.system.memory import measure_peak_memory, reuse_freed_memory

CALIBRATION_SECONDS = 1.0  # of which there are two
BUSY = 0.8  # where a thread gets less of a processor than this, other work takes the rest
ENDING = 80_000_000  # bytes that figures and the comparison with xz take at the end of a run
BYTES_PER_TOKEN = 3  # of byte pairs and word pieces, about
USUAL_TEXT = 65, 1_003_854, 111_540  # tinyshakespeare: characters in all, to train on, to validate with


class Cost(NamedTuple):
    """A run's size: ``parameters``, ``steps``, ``tokens`` and floating-point operations of its training, the
    most ``memory`` it takes (bytes), and the ``seconds`` it lasts here, evaluations and samples included: at
    least, and at most. ``free`` is the share of a processor that a thread got beside other work; where that
    is less than ``BUSY``, the seconds are those of a machine that does nothing else."""

    parameters: int
    steps: int
    tokens: int
    flops: int
    memory: int
    seconds: tuple
    free: float


def estimate_cost(recipe, data=()):
    """Return the ``Cost`` of training ``recipe`` on this machine, on the texts ``data`` if any are given.

    For a recipe that needs a text and has none, the size of tinyshakespeare is assumed. The steps of the run
    are timed for two seconds; see ``calibration``.
    """
    reuse_freed_memory()
    before = measure_peak_memory() or 0
    args, length = recipe.training, recipe.model.context_length
    vocabulary, train_dataset, validation, sampled = _estimate_material(recipe, data)
    steps, examples = args.steps_for(train_dataset), len(validation.places())
    model = recipe.architecture.model(recipe.config(vocabulary)).build(seed=0)
    evaluated_together = min(batch_rows(model), examples)
    counts = {"train": args.per_device_train_batch_size, "evaluate": evaluated_together, "generate": sampled}
    measured, free = _measure(model, args, counts)

    evaluations = -(-steps // args.eval_steps) + 1
    evaluated = evaluations * min(SAMPLED_PLACES, examples) + examples
    held = 4 * model.flat.values.nbytes  # values, gradients and two moments
    return Cost(
        parameters=model.parameter_count(),
        steps=steps,
        tokens=steps * args.rows * length,
        flops=3 * model.forward_flops(length) * args.rows * steps,
        memory=int(
            ENDING
            + max(measure_peak_memory() or 0, before + held + max(part.memory for part in measured.values()))
        ),
        seconds=tuple(
            steps * args.gradient_accumulation_steps * train
            + evaluated * evaluate / evaluated_together
            + evaluations * generate
            for train, evaluate, generate in zip(*(part[:2] for part in measured.values()), strict=True)
        ),
        free=free,
    )


def _measure(model, args, counts):
    """Return the ``Measurement`` of each part of a run, and the share of a processor that was free."""
    free, moments = [measure_free_share()], []
    for _ in range(2):
        moments.append(calibrate(model, args, counts, CALIBRATION_SECONDS))
        free.append(measure_free_share())
    first, second = moments
    measured = {name: _combine(first[name], second[name]) for name in counts}
    if min(free) < BUSY and (alone := calibrate_alone(model, args, counts, CALIBRATION_SECONDS)):
        # n threads take at least 1/n of the time of one
        for name, (least, most, _) in alone.items():
            measured[name] = Measurement(least / count_threads(), most, measured[name].memory)
    return measured, min(free)


def _combine(first, second):
    """Return the range that two measurements of the same part span."""
    least, most, memory = zip(first, second, strict=True)
    return Measurement(min(least), max(most), max(memory))


def _estimate_material(recipe, data):
    """Return the vocabulary's size, datasets of the right size, and the tokens of a sample."""
    length, characters = recipe.model.context_length, recipe.text.tokenizer == "characters"
    if recipe.pretrained is not None:
        characters = is_character_level(load_pretrained_tokenizer(recipe.pretrained))
    if recipe.corpus in TASKS:
        task = TASKS[recipe.corpus]()
        return task.tokenizer.get_vocab_size(), task.train, task.validation, task.answer_length
    if recipe.corpus == "text" and not data:
        vocabulary, *counts = USUAL_TEXT
    else:
        corpus = load_corpus(recipe.name, recipe.corpus, data)
        counts = corpus.train.byte_count, corpus.validation.byte_count
        if characters:
            pieces = (piece for part in (corpus.train, corpus.validation) for piece in part.pieces())
            vocabulary = character_tokenizer(pieces).get_vocab_size()
    if not characters:
        vocabulary = recipe.text.vocabulary_size
        counts = [count // BYTES_PER_TOKEN for count in counts]
    # zeros that take no memory: only their number matters here
    make = recipe.architecture.text_dataset
    datasets = [make(np.broadcast_to(0, max(2, count)), length) for count in counts]
    return vocabulary, *datasets, SAMPLE_TOKENS
