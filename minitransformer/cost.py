"""What a recipe will cost on this machine: counted where it can be counted, else measured for two seconds."""

import time
import tracemalloc
from statistics import median
from typing import NamedTuple

import numpy as np

from minitransformer.data.corpus import corpus_of
from minitransformer.data.datasets import TokenWindows
from minitransformer.data.tasks import TASKS
from minitransformer.data.tokenizer import character_tokenizer, is_character_level
from minitransformer.dispatch import inference
from minitransformer.evaluation import SAMPLED_PLACES, batch_rows
from minitransformer.functional import Key
from minitransformer.generation import generate
from minitransformer.memory import peak_memory, reuse_freed_memory
from minitransformer.models import GPT
from minitransformer.pretrained import pretrained_tokenizer
from minitransformer.run import SAMPLE_TOKENS
from minitransformer.training.optimisers import optimiser_for
from minitransformer.training.step import update

CALIBRATION_SECONDS = 2.0
ENDING = 80_000_000  # bytes that pictures and the comparison with xz take at the end of a run
BYTES_PER_TOKEN = 3  # of byte pairs and word pieces, about
USUAL_TEXT = 65, 1_003_854, 111_540  # tinyshakespeare: characters in all, to train on, to validate with


class Cost(NamedTuple):
    """A run's size: ``parameters``, ``steps``, ``tokens`` and floating-point operations of its training, the
    most ``memory`` it takes (bytes), and the ``seconds`` it lasts here, evaluations and samples included."""

    parameters: int
    steps: int
    tokens: int
    flops: int
    memory: int
    seconds: float


def estimate_cost(recipe, data=()):
    """Return the ``Cost`` of training ``recipe`` on this machine, on the texts ``data`` if any are given.

    A recipe that wants a text and has none is reckoned with one of tinyshakespeare's size. Two seconds of the
    very steps that the run is made of are timed; what is too large for that is timed with fewer rows, and
    the rest reckoned from there.
    """
    reuse_freed_memory()
    before = peak_memory() or 0
    args, length = recipe.training, recipe.model["context_length"]
    vocabulary, train_dataset, validation, sampled = _material(recipe, data)
    steps, examples = args.steps_for(train_dataset), len(validation.places())
    model = GPT(recipe.config(vocabulary)).build(seed=0)
    optimiser = optimiser_for(model, args)
    rows, judged_together = args.per_device_train_batch_size, min(batch_rows(model), examples)

    def train(count):
        update(model, optimiser, [_batch(model.config, count)], 0.0, args.max_grad_norm, Key(0))

    def judge(count):
        with inference():
            model.loss(_batch(model.config, count))

    def write(count):
        list(generate(model, [0], count))

    for work in (train, judge, write):
        work(1)  # what is compiled, compiles now
    training = _measured(train, rows, CALIBRATION_SECONDS * 0.6)
    judging = _measured(judge, judged_together, CALIBRATION_SECONDS * 0.2)
    writing = _measured(write, sampled, CALIBRATION_SECONDS * 0.2)

    evaluations = -(-steps // args.eval_steps) + 1
    judged = evaluations * min(SAMPLED_PLACES, examples) + examples
    held = 4 * model.flat.values.nbytes  # values, gradients and two moments
    return Cost(
        parameters=model.parameter_count(),
        steps=steps,
        tokens=steps * args.rows * length,
        flops=3 * model.forward_flops(length) * args.rows * steps,
        memory=int(max(peak_memory() or 0, before + held + max(training.memory, judging.memory)) + ENDING),
        seconds=(
            steps * args.gradient_accumulation_steps * training.seconds
            + judged * judging.seconds / judged_together
            + evaluations * writing.seconds
        ),
    )


class _Measurement(NamedTuple):
    seconds: float
    memory: float


def _measured(work, count, budget):
    """Return the time and memory of ``work(count)``, reckoned from smaller counts if it takes too long."""
    one = _measured_at(work, 1, budget / 4)
    some = min(count, max(2, int(budget / 3 / max(one.seconds, 1e-6))))
    if some <= 1:
        return one
    more = _measured_at(work, some, budget / 2)
    if some == count:
        return more
    growth = [max(0.0, (large - small) / (some - 1)) for large, small in zip(more, one, strict=True)]
    return _Measurement(*(small + each * (count - 1) for small, each in zip(one, growth, strict=True)))


def _measured_at(work, count, budget):
    """Return the median time of ``work(count)``, in about ``budget`` seconds, and the most it holds."""
    tracemalloc.start()
    try:
        work(count)
        memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    times = []
    while not times or sum(times) < budget:
        start = time.perf_counter()
        work(count)
        times.append(time.perf_counter() - start)
    return _Measurement(median(times), memory)


def _material(recipe, data):
    """Return the vocabulary's size, datasets of the right size, and the tokens of a sample."""
    length, characters = recipe.model["context_length"], recipe.text.tokenizer == "characters"
    if recipe.pretrained is not None:
        characters = is_character_level(pretrained_tokenizer(recipe.pretrained))
    if recipe.corpus in TASKS:
        task = TASKS[recipe.corpus]()
        return task.tokenizer.get_vocab_size(), task.train, task.validation, task.answer_length
    if recipe.corpus == "text" and not data:
        vocabulary, *counts = USUAL_TEXT
    else:
        corpus = corpus_of(recipe.name, recipe.corpus, data)
        counts = corpus.train.byte_count, corpus.validation.byte_count
        if characters:
            pieces = (piece for part in (corpus.train, corpus.validation) for piece in part.pieces())
            vocabulary = character_tokenizer(pieces).get_vocab_size()
    if not characters:
        vocabulary = recipe.text.vocabulary_size
        counts = [count // BYTES_PER_TOKEN for count in counts]
    # zeros that take no memory: only their number matters here
    datasets = [TokenWindows(np.broadcast_to(0, max(2, count)), length) for count in counts]
    return vocabulary, *datasets, SAMPLE_TOKENS


def _batch(config, rows):
    """Return a batch of ``rows`` full windows of arbitrary tokens."""
    ids = np.random.default_rng(0).integers(0, config.vocabulary_size, (rows, config.context_length))
    return {"ids": ids, "targets": ids, "counts": {"tokens": ids.size}}
