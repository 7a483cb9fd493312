"""The table of architectures: a second system is a model, a layout and a row; everything else follows."""

import json
import sys
import types
from dataclasses import dataclass, replace

import numpy as np
import pytest
from common.command_line import TEXT
from typer.testing import CliRunner

from minitransformer import dispatch
from minitransformer.arrays import array_module
from minitransformer.command.app import app
from minitransformer.data.datasets import TokenWindows
from minitransformer.errors import InputError
from minitransformer.evaluation.scores import evaluate_task, evaluate_text
from minitransformer.functional import IGNORED
from minitransformer.gradcheck import check_model
from minitransformer.layers import Embedding, Linear
from minitransformer.models import GPT, GPTConfig
from minitransformer.models.batch import make_batch
from minitransformer.models.table import ARCHITECTURES, Architecture, find_architecture
from minitransformer.parameters import Layer
from minitransformer.pretrained.model_folder import load_model
from minitransformer.recipes import load_recipe, make_recipe
from minitransformer.recipes.cost import estimate_cost
from minitransformer.recipes.run import train_recipe

# --- a model file: the smallest system that learns from a text


@dataclass(frozen=True)
class BigramConfig:
    vocabulary_size: int
    context_length: int = 8
    width: int = 4


class Bigram(Layer):
    """The next token from the last one alone: ids (B, T) → logits (B, T, V)."""

    def __init__(self, config):
        self.config = config
        self.embedding = Embedding(config.vocabulary_size, config.width)
        self.head = Linear(config.width, config.vocabulary_size, bias=False)

    def __call__(self, batch, key=None):
        h, embedding_backward = self.embedding(self._batch(batch)["ids"])
        logits, head_backward = self.head(h)
        return logits, lambda dlogits: embedding_backward(head_backward(dlogits))

    def loss(self, batch, key=None):
        batch = self._batch(batch)
        h, embedding_backward = self.embedding(batch["ids"])
        weight = self.head.weight
        total, call = dispatch.linear_cross_entropy(h, weight.value.T, None, targets=batch["targets"])

        def backward(weights):
            add_to = (None, weight.gradient.T, None)
            dh, _, _ = dispatch.linear_cross_entropy_backward(weights["tokens"], call, add_to=add_to)
            embedding_backward(dh)

        return {"tokens": total}, backward

    def count_targets(self, batch):
        return {"tokens": int((batch["targets"] != IGNORED).sum())}

    def forward_flops(self, length):
        return 2 * length * self.config.width * self.config.vocabulary_size

    def _batch(self, given):
        return make_batch(array_module(self.embedding.table.value), given)


# --- a layout file


def make_layout():
    layout = types.ModuleType("minitransformer.pretrained.bigram")
    layout.MODEL_TYPE, layout.PREFIX, layout.TIED = "bigram", "", {}
    layout.is_buffer = lambda name: False
    layout.check_depth = lambda names, config, path: None
    layout.to_hugging_face = lambda config: {
        "vocab_size": config.vocabulary_size,
        "hidden_size": config.width,
    }
    layout.from_hugging_face = lambda table, path: BigramConfig(
        table["vocab_size"], width=table["hidden_size"]
    )
    layout.tensors = lambda config: [
        (path, path.replace(".", "_"), parameter.shape)
        for path, parameter in Bigram(config).parameters().items()
    ]
    return layout


# --- a row


ROW = Architecture(
    name="bigram",
    title="bigram model",
    config=BigramConfig,
    model=Bigram,
    layout="bigram",
    text_dataset=TokenWindows,
    evaluate_text=evaluate_text,
    evaluate_task=evaluate_task,
    commands=frozenset({"evaluate"}),
)
RECIPE = {
    "name": "pairs",
    "description": "The smallest language model.",
    "architecture": "bigram",
    "corpus": "text",
    "model": {"width": 6},
    "training": {"max_steps": 60, "learning_rate": 0.1, "eval_steps": 30, "save_steps": 30},
}


@pytest.fixture
def bigrams(monkeypatch):
    layout = make_layout()
    monkeypatch.setitem(sys.modules, layout.__name__, layout)
    monkeypatch.setitem(ARCHITECTURES, "bigram", ROW)


@pytest.fixture
def trained(bigrams, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    recipe = make_recipe(RECIPE)
    model, material = train_recipe(recipe, tmp_path / "run", [tmp_path / "text.txt"])
    return tmp_path / "run", model, material


def test_the_model_is_right():
    ids = np.array([[1, 0, 4, 2], [3, 3, 1, 0]])
    model = Bigram(BigramConfig(5)).build(dtype="float64")
    check_model(model, {"ids": ids, "targets": np.array([[0, 4, 2, IGNORED], [3, 1, 0, 2]])})


def test_it_trains_is_saved_loaded_and_scored(trained):
    folder, model, material = trained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if line["val_loss"] is not None]
    assert losses[-1] < losses[0] - 0.5
    again = load_model(folder)
    assert isinstance(again, Bigram)
    np.testing.assert_array_equal(again.flat.values, model.flat.values)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bigram"
    assert not (folder / "generation_config.json").exists()
    result = CliRunner().invoke(app, ["evaluate", str(folder)])
    expected = evaluate_text(model, material.tokenizer, material.validation.tokens, material.validation_text)
    assert json.loads(result.stdout)["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-6)


@pytest.mark.parametrize(
    "arguments", [["generate"], ["attention", "--text", "the"], ["positions"]], ids=lambda part: part[0]
)
def test_what_it_cannot_do_is_refused(trained, arguments):
    command, *options = arguments
    result = CliRunner().invoke(app, [command, str(trained[0]), *options])
    assert isinstance(result.exception, InputError)
    expected = f"{command} does not apply to a bigram model; commands that apply: evaluate"
    assert str(result.exception) == expected


def test_its_recipe_has_its_settings_and_its_cost(bigrams):
    recipe = make_recipe(RECIPE, ["width=3"])
    assert recipe.config(7) == BigramConfig(7, width=3)
    assert make_recipe(recipe.table()) == recipe
    with pytest.raises(InputError, match="there is no setting 'heads'"):
        make_recipe(RECIPE, ["heads=3"])
    cost = estimate_cost(recipe)
    assert cost.parameters == 2 * 65 * 3
    assert cost.steps == 60


def test_a_run_can_start_from_it(trained, tmp_path):
    folder, model, _ = trained
    recipe = load_recipe("shakespeare", [f"pretrained={folder}", "max_steps=0", "context_length=4"])
    assert recipe.architecture is ROW
    assert recipe.model.width == 6
    again, _ = train_recipe(recipe, tmp_path / "tuned", [tmp_path / "text.txt"])
    np.testing.assert_array_equal(again.flat.values, model.flat.values)
    assert again.config.context_length == 4


def test_a_subclass_has_the_row_of_its_model_or_its_own(monkeypatch):
    class Mine(GPT):
        pass

    model = Mine(GPTConfig(3, 4, 1, 1, 4))
    assert find_architecture(model) is ARCHITECTURES["gpt"]
    own = replace(ARCHITECTURES["gpt"], name="mine", model=Mine)
    monkeypatch.setitem(ARCHITECTURES, "mine", own)
    assert find_architecture(model) is own
    assert find_architecture(GPT(model.config)) is ARCHITECTURES["gpt"]


def test_what_is_not_in_the_table():
    with pytest.raises(TypeError, match="no architecture with a Linear; the table has GPT"):
        find_architecture(Linear(2, 2))
    with pytest.raises(TypeError, match="no architecture with a BigramConfig"):
        find_architecture(BigramConfig(3))
