"""What the tests of commands share: a folder with a trained model."""

import subprocess
import sys

import pytest
from common.command_line import SETTINGS, TEXT, minitransformer

COMPILE = """
import dataclasses
import numpy as np
from minitransformer.functional import Key
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import TrainingArguments, train_step
from minitransformer.training.optimisers import make_optimiser
ids = np.zeros((8, 128), int)
config = GPTConfig(vocabulary_size=256, context_length=128, layers=1, heads=4, width=64, dropout=0.1)
for activation in ("gelu_exact", "relu"):
    model = GPT(dataclasses.replace(config, activation=activation)).build(seed=0)
    optimiser = make_optimiser(model, TrainingArguments())
    train_step(model, optimiser, [{"ids": ids, "targets": ids}], 1e-3, 1.0, Key(0))
"""


@pytest.fixture(scope="session")
def compiled_kernels():
    """Let nothing be said of compiling: whoever needs kernels finds them in the tests' cache."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True, capture_output=True, timeout=120)


@pytest.fixture(scope="session")
def folder(tmp_path_factory, compiled_kernels):
    """A folder with a text, and a small model trained on it in ``model``."""
    root = tmp_path_factory.mktemp("command")
    (root / "text.txt").write_text(TEXT)
    done = minitransformer(
        "train", "shakespeare", "--data", "text.txt", "--output-dir", "model", *SETTINGS, cwd=root
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "step 20: training loss" in done.stdout
    assert "xz -9 needs" in done.stdout
    assert "Lower is better: a uniform guess needs 8 bits per byte" in done.stdout
    assert "trained on " in done.stdout.splitlines()[0]
    assert "minitransformer generate model --prompt" in done.stdout
    assert "Done in 0.0" not in done.stdout
    return root
