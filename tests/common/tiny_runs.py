"""Training runs of a second or less, for the tests of the trainer: small models, little data, real files."""

import json

import numpy as np
from safetensors.numpy import load_file

from minitransformer.data.datasets import Sequences, TokenWindows
from minitransformer.evaluation import scores
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import Callback, Trainer, TrainingArguments

VOCABULARY, LENGTH = 16, 8


def tiny_model(dtype="float32", **changes):
    """Return a GPT of a thousand parameters, with dropout."""
    settings = {"vocabulary_size": VOCABULARY, "context_length": LENGTH, "layers": 1, "heads": 2, "width": 8}
    return GPT(GPTConfig(**settings | {"dropout": 0.2} | changes)).build(seed=0, dtype=dtype)


def windows(count=200):
    """Return windows of random tokens."""
    return TokenWindows(np.random.default_rng(1).integers(0, VOCABULARY, count), LENGTH)


def sequences(count=50):
    """Return sequences of 1 to 8 tokens, about a third of which need not be predicted."""
    random = np.random.default_rng(2)
    ids = [random.integers(0, VOCABULARY, length) for length in random.integers(1, LENGTH + 1, count)]
    targets = [
        np.where(random.random(len(row)) < 0.3, -100, random.integers(0, VOCABULARY, len(row))) for row in ids
    ]
    return Sequences(ids, targets)


def tiny_trainer(folder, dataset=None, callbacks=(), dtype="float32", dropout=0.2, **changes):
    """Return a trainer into ``folder`` that logs every step, and evaluates and saves every fourth."""
    dataset = dataset or windows()
    settings = {"max_steps": 10, "logging_steps": 1, "eval_steps": 4, "save_steps": 4, "weight_decay": 0.1}
    arguments = TrainingArguments(str(folder), **settings | {"disable_tqdm": True} | changes)
    return Trainer(tiny_model(dtype, dropout=dropout), arguments, dataset, dataset, callbacks)


def metrics(folder):
    """Return the lines of the metrics, without the one number that is another every time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def names(folder):
    """Return the names in ``folder``, hidden ones included, in order."""
    return sorted(path.name for path in folder.iterdir())


def saved_steps(folder):
    """Return the steps of the checkpoints in ``folder``, in order."""
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*"))


def assert_same_end(folder, expected):
    """Check that two runs ended with the same weights, moments and metrics, bit for bit."""
    last = f"checkpoint-{saved_steps(expected)[-1]}"
    compared = ["model.safetensors", f"{last}/model.safetensors", f"{last}/optimizer.safetensors"]
    if (expected / "best").exists():
        compared += ["best/model.safetensors", f"{last}/best/model.safetensors"]
    for name in ("config.json", *(f"{best}/config.json" for best in ("best", f"{last}/best"))):
        if (expected / name).exists():
            assert (folder / name).read_text() == (expected / name).read_text(), name
    for name in compared:
        ours, theirs = load_file(folder / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        for tensor in theirs:
            np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=f"{name}: {tensor}")
    assert metrics(folder) == metrics(expected)


class OnStep(Callback):
    """Calls ``action`` after every step."""

    def __init__(self, action):
        self.action = action

    def on_step_end(self, trainer, result):
        self.action(trainer, result)


class StoppedError(Exception):
    """As if the process had ended here."""


class StopAt(Callback):
    """Does ``action`` the first time that ``moment`` comes with ``step`` steps done."""

    def __init__(self, moment, step, action):
        self.step, self.action = step, action
        setattr(self, moment, self.look)

    def look(self, trainer, *_):
        if trainer.step == self.step and self.action is not None:
            action, self.action = self.action, None
            action()


def fail():
    """Stop a run."""
    raise StoppedError


def all_bytes(folder):
    """Return the content of every file in ``folder``."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pretend_losses(monkeypatch, losses):
    """Let the evaluations while training give ``losses``, one after the other."""
    given = iter(losses)
    monkeypatch.setattr(scores, "sampled_loss", lambda model, dataset: next(given))
