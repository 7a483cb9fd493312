"""Real text, from the folder that MINITRANSFORMER_DATA names: the corpus, and the first steps on it."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from minitransformer.models import GPT
from minitransformer.recipes import load_recipe
from minitransformer.recipes.material import load_material
from minitransformer.training import Callback, Trainer

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@pytest.fixture(scope="module")
def shakespeare():
    folder = os.environ.get("MINITRANSFORMER_DATA")
    if not folder:
        pytest.skip("MINITRANSFORMER_DATA names no folder with tinyshakespeare.txt")
    material = load_material(load_recipe("shakespeare"), [Path(folder) / "tinyshakespeare.txt"])
    assert material.source["sha256"] == SHA256
    return material


def test_tinyshakespeare_is_split_as_published(shakespeare):
    assert (len(shakespeare.train.tokens), len(shakespeare.validation.tokens)) == (1_003_854, 111_540)
    assert shakespeare.tokenizer.get_vocab_size() == 65
    first = shakespeare.train.tokens[:14].tolist()
    assert shakespeare.tokenizer.decode(first) == "First Citizen:"


class Losses(Callback):
    """Collects the loss of every step."""

    def __init__(self):
        self.losses = []

    def on_step_end(self, trainer, result):
        self.losses.append(result.loss)


def test_the_recipe_takes_pytorchs_first_steps(shakespeare, torch, tmp_path):
    """The recipe as it is, float32: the same weights and windows give the same losses, through warmup."""
    from bench import torch_gpt

    recipe = load_recipe("shakespeare", ["max_steps=25", "warmup_steps=10"])
    arguments = dataclasses.replace(recipe.training, output_dir=str(tmp_path / "run"))
    model = GPT(recipe.config(65)).build(seed=arguments.seed)
    tensors = torch_gpt.tensors_like(model, torch.float32)
    collected = Losses()
    Trainer(model, arguments, shakespeare.train, callbacks=[collected]).train()

    optimiser = torch_gpt.adamw(tensors, arguments)
    theirs = []
    for step in range(25):
        batch = shakespeare.train.collate(shakespeare.train.training_places(step, 12, arguments.seed))
        ids, targets = torch.from_numpy(batch["ids"]), torch.from_numpy(batch["targets"])
        rate = arguments.learning_rate_at(step, 25)
        theirs.append(torch_gpt.train_step(tensors, model.config, optimiser, ids, targets, rate, 1.0))
    np.testing.assert_allclose(collected.losses, theirs, rtol=0, atol=3e-6)
    assert theirs[-1] < 3.1 < theirs[0]


def test_the_committed_run_reached_what_nanogpt_does():
    """The whole run takes minutes: python -m bench parity --data tinyshakespeare.txt repeats it."""
    path = Path(__file__).parents[2] / "bench" / "results" / "parity.json"
    (result,) = json.loads(path.read_text())["results"]
    assert result["case"] == {"recipe": "shakespeare", "max_steps": 2000, "sha256": SHA256}
    assert result["val_loss"]["ours"] <= 1.94
    assert abs(result["val_loss"]["ours"] - result["val_loss"]["pytorch"]) <= 0.03
