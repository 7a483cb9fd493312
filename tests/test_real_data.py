"""Real text, from the folder that MINITRANSFORMER_DATA names: the corpus, and the first steps on it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from minitransformer.batches import random_windows
from minitransformer.corpus import text_corpus
from minitransformer.models import GPT
from minitransformer.recipes import load_recipe
from minitransformer.tokenizer import character_tokenizer, encode
from minitransformer.training import training_steps

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture(scope="module")
def shakespeare():
    folder = os.environ.get("MINITRANSFORMER_DATA")
    if not folder:
        pytest.skip("MINITRANSFORMER_DATA names no folder with tinyshakespeare.txt")
    corpus = text_corpus(Path(folder) / "tinyshakespeare.txt")
    assert corpus.source["sha256"] == SHA256
    return corpus


def test_tinyshakespeare_is_split_as_published(shakespeare):
    assert (len(shakespeare.train), len(shakespeare.validation)) == (1_003_854, 111_540)
    assert character_tokenizer(shakespeare.train).get_vocab_size() == 65


def test_the_recipe_takes_pytorchs_first_steps(shakespeare, torch):
    """The recipe as it is, float32: the same weights and windows give the same losses, through warmup."""
    from bench import torch_gpt

    recipe = load_recipe("shakespeare", ["max_steps=25", "warmup_steps=10"])
    arguments = recipe.training
    tokenizer = character_tokenizer(shakespeare.train)
    tokens = encode(tokenizer, shakespeare.train)
    model = GPT(recipe.config(65)).build(seed=arguments.seed)
    tensors = torch_gpt.tensors_like(model, torch.float32)
    ours = [step.loss for step in training_steps(model, tokens, arguments)]

    optimiser = torch_gpt.adamw(tensors, arguments)
    theirs = []
    for step, batch in zip(range(25), random_windows(model, tokens, 12, arguments.seed), strict=False):
        ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])
        rate = arguments.learning_rate_at(step)
        theirs.append(torch_gpt.update(tensors, model.config, optimiser, ids, targets, rate, 1.0))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)
    assert ours[-1] < 3.1 < ours[0]


def test_the_committed_run_reached_what_nanogpt_does():
    """The whole run takes minutes: python -m bench parity --data tinyshakespeare.txt repeats it."""
    path = Path(__file__).parent.parent / "bench" / "results" / "parity.json"
    (result,) = json.loads(path.read_text())["results"]
    assert result["case"] == {"recipe": "shakespeare", "max_steps": 2000, "sha256": SHA256}
    assert result["val_loss"]["ours"] <= 1.94
    assert abs(result["val_loss"]["ours"] - result["val_loss"]["pytorch"]) <= 0.03
