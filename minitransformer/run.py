"""A whole training run: from a recipe and a corpus to a folder with a model, its record and its picture."""

import contextlib
import json
import math
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from minitransformer.checkpoint import CONFIG, WEIGHTS, save_model
from minitransformer.corpus import CORPUS, python_corpus, text_corpus
from minitransformer.errors import DivergedError, InputError
from minitransformer.evaluation import sampled_loss
from minitransformer.files import replacing, write_json
from minitransformer.generation import generate
from minitransformer.memory import reuse_freed_memory
from minitransformer.models import GPT
from minitransformer.plots import plot_loss
from minitransformer.tokenizer import TOKENIZER, character_tokenizer, encode
from minitransformer.training import training_steps

METRICS, LOSS_PICTURE = "metrics.jsonl", "loss.png"
SAMPLE_TOKENS = 200


class Display:
    """What a run tells whoever is watching; this one keeps silent."""

    def begin(self, recipe, model, corpus, output_dir):
        """The run is about to start."""

    def stepped(self, step, loss, tokens_per_second):
        """An update was made; ``loss`` is a running mean."""

    def evaluated(self, line, sample):
        """The line of the metrics that has a ``val_loss``, and a text that the model wrote."""


def train_recipe(recipe, output_dir, data=None, device="cpu", display=None):
    """Train ``recipe`` into ``output_dir``; return ``(model, tokenizer, corpus, finished)``.

    ``data`` is the text file of a recipe whose corpus is ``"text"``; given to another recipe it replaces that
    recipe's corpus. The folder then holds the model in Hugging Face's layout, ``metrics.jsonl`` (an object a
    line), ``corpus.json`` (what was learned from) and ``loss.png``. Weights are saved at every evaluation.
    Ctrl-C ends the run after the step it is in, saved; ``finished`` is then False.

    Raises InputError for data or a folder that can't be used, and DivergedError when the loss is no longer
    finite: the folder then keeps the last weights whose loss was.
    """
    output_dir = Path(output_dir)
    check_output_dir(output_dir)
    corpus = load_corpus(recipe, data)
    tokenizer = character_tokenizer(corpus.train + corpus.validation)
    config = recipe.config(tokenizer.get_vocab_size())
    check_long_enough(corpus, config.context_length)
    reuse_freed_memory()
    model = GPT(config).build(seed=recipe.training.seed, device=device)
    smallest = np.min_scalar_type(config.vocabulary_size - 1)
    train_tokens = encode(tokenizer, corpus.train).astype(smallest)
    validation_tokens = encode(tokenizer, corpus.validation).astype(smallest)

    claim(output_dir)
    write_json(output_dir / CORPUS, corpus.source)
    with replacing(output_dir / TOKENIZER) as temporary:
        tokenizer.save(str(temporary))
    run = _Run(recipe, model, tokenizer, validation_tokens, output_dir, display or Display())
    run.display.begin(recipe, model, corpus, output_dir)
    with _interruption() as asked:
        try:
            finished = run.train(train_tokens, asked)
        except DivergedError:
            with contextlib.suppress(OSError):  # the picture is not worth hiding the reason
                plot_loss(run.metrics, output_dir / LOSS_PICTURE)
            raise
    plot_loss(run.metrics, output_dir / LOSS_PICTURE)
    return model, tokenizer, corpus, finished


class _Run:
    """The state of a run between its steps."""

    def __init__(self, recipe, model, tokenizer, validation_tokens, output_dir, display):
        self.recipe, self.arguments = recipe, recipe.training
        self.model, self.tokenizer, self.validation_tokens = model, tokenizer, validation_tokens
        self.output_dir, self.display = output_dir, display
        self.metrics = []
        self.saved_step = None

    def train(self, tokens, asked):
        """Train to the end, or until ``asked`` is set; return whether it was the end."""
        arguments = self.arguments
        self.evaluate(0, None, None, None)
        losses, counted, seconds = [], 0, 0.0
        mark = time.perf_counter()
        try:
            for step in training_steps(self.model, tokens, arguments):
                losses.append(step.loss)
                counted += step.tokens
                seconds += time.perf_counter() - mark
                stopping = asked.is_set() and step.number < arguments.max_steps
                last = stopping or step.number == arguments.max_steps
                evaluating = last or step.number % arguments.eval_steps == 0
                mean, speed = sum(losses) / len(losses), counted / seconds
                self.display.stepped(step, mean, speed)
                if evaluating:
                    self.evaluate(step.number, mean, step.learning_rate, speed)
                elif step.number % arguments.logging_steps == 0:
                    self.log(step.number, mean, None, step.learning_rate, speed)
                if evaluating or step.number % arguments.logging_steps == 0:
                    losses, counted, seconds = [], 0, 0.0
                if stopping:
                    return False
                mark = time.perf_counter()
        except DivergedError as error:
            raise self.diverged(error) from None
        return True

    def evaluate(self, step, train_loss, learning_rate, speed):
        """Judge the model by the validation sample, save it, log it, and show what it writes."""
        val_loss = sampled_loss(self.model, self.validation_tokens)
        if not math.isfinite(val_loss):
            raise self.diverged(f"training diverged at step {step}: the validation loss is {val_loss}")
        settings = {"recipe": self.recipe.name, "step": step, "training": vars(self.arguments)}
        save_model(self.model, self.output_dir, settings)
        self.saved_step = step
        line = self.log(step, train_loss, val_loss, learning_rate, speed)
        sample = write_sample(self.model, self.tokenizer, seed=step)
        self.display.evaluated(line, sample)

    def log(self, step, train_loss, val_loss, learning_rate, speed):
        """Append a line to the metrics and return it."""
        line = {
            "step": step,
            "train_loss": train_loss,
            "val_loss": val_loss,
            "learning_rate": learning_rate,
            "tokens_per_second": speed,
        }
        self.metrics.append(line)
        with (self.output_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def diverged(self, reason):
        """Return the error that says what is kept."""
        kept = "nothing was saved yet"
        if self.saved_step is not None:
            kept = f"{self.output_dir} keeps the weights of step {self.saved_step}"
        return DivergedError(f"{reason}; {kept}")


def load_corpus(recipe, data):
    """Return the corpus of ``recipe``, or that of the text file ``data`` if one is given."""
    if data is not None:
        return text_corpus(data)
    if recipe.corpus == "python":
        return python_corpus()
    raise InputError(f"the recipe {recipe.name!r} learns from a text file of yours: give it with --data PATH")


def check_output_dir(output_dir):
    """Raise InputError if ``output_dir`` is a file or holds a run already."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; expected a folder to write to")
    if any((output_dir / name).exists() for name in (CONFIG, WEIGHTS, METRICS)):
        raise InputError(f"{output_dir} holds another run; choose another --output-dir or remove it first")


def claim(output_dir):
    """Make the folder and its metrics file, which no other run may have made meanwhile."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / METRICS).touch(exist_ok=False)
    except FileExistsError:
        raise InputError(f"{output_dir} holds another run; choose another --output-dir") from None
    except OSError as error:
        raise OSError(
            f"cannot write to {output_dir}: {error.strerror}; choose another --output-dir"
        ) from None


def check_long_enough(corpus, context_length):
    """Raise InputError unless both parts of ``corpus`` can fill what is asked of them."""
    if len(corpus.train) <= context_length or len(corpus.validation) < 2:
        raise InputError(
            f"the text is too short: {len(corpus.train)} characters to train on and {len(corpus.validation)} "
            f"to validate with; sequences of context_length {context_length} need at least "
            f"{context_length + 1} and 2. Give more text or set a smaller context_length"
        )


def write_sample(model, tokenizer, seed):
    """Return a newline and what ``model`` writes after it."""
    start = start_id(tokenizer)
    ids = generate(model, [start], SAMPLE_TOKENS, temperature=0.8, seed=seed)
    return tokenizer.decode([start, *ids])


def start_id(tokenizer):
    """Return the token that a text without a prompt starts after: the newline, or else token 0."""
    return tokenizer.token_to_id("\n") or 0


@contextlib.contextmanager
def _interruption():
    """Within this block the first Ctrl-C only sets the event that is yielded; a second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return

    def handle(number, frame):
        asked.set()
        print("\nstopping after this step; Ctrl-C again stops at once", file=sys.stderr)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, previous)
