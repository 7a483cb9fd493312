"""Recipes: the settings that others published, and what can be set, by name."""

import inspect
import json
import math
import re
from dataclasses import fields, replace

import pytest

from minitransformer.errors import InputError
from minitransformer.models import GPT, GPTConfig
from minitransformer.recipes import Recipe, TextSettings, list_recipes, load_recipe, make_recipe
from minitransformer.recipes.resuming import load_resumed_recipe
from minitransformer.system.settings import ELSEWHERE
from minitransformer.training import TrainingArguments


def test_all_recipes_load_and_say_what_they_are():
    names = list_recipes()
    assert names == ["addition", "python", "python-bpe", "shakespeare", "shakespeare-large", "sort"]
    for name in names:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description.endswith(".")
        assert recipe.config(65).vocabulary_size == 65
        assert recipe.training.output_dir == TrainingArguments().output_dir
        assert recipe.training.steps_for(TenBatches()) > 0


class TenBatches:
    def batches_per_epoch(self, rows):
        return 10


NANOGPT = {
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 100,
    "optim": "adamw",
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 1,
    "eval_steps": 250,
}
MINGPT = {
    "optim": "adamw",
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_epsilon": 1e-8,
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
}


def check_training(recipe, **settings):
    assert {name: getattr(recipe.training, name) for name in settings} == settings


def test_nanogpts_laptop_configuration():
    recipe = load_recipe("shakespeare")
    assert recipe.corpus == "text"
    assert recipe.text == TextSettings("characters")
    assert recipe.config(65) == GPTConfig(
        vocabulary_size=65,
        context_length=64,
        layers=4,
        heads=4,
        width=128,
        feed_forward_width=512,
        activation="gelu_exact",
        bias=False,
        positions="learned",
        dropout=0.0,
        eps=1e-5,
    )
    check_training(recipe, **NANOGPT, max_steps=2000, per_device_train_batch_size=12)


def test_nanogpts_gpu_configuration():
    recipe = load_recipe("shakespeare-large")
    assert recipe.corpus == "text"
    assert recipe.text == TextSettings("characters")
    assert recipe.config(65) == GPTConfig(
        vocabulary_size=65,
        context_length=256,
        layers=6,
        heads=6,
        width=384,
        feed_forward_width=1536,
        activation="gelu_exact",
        bias=False,
        positions="learned",
        dropout=0.2,
        eps=1e-5,
    )
    check_training(
        recipe, **NANOGPT, max_steps=5000, per_device_train_batch_size=64, load_best_model_at_end=True
    )


@pytest.mark.parametrize(
    ("name", "parameters"), [("shakespeare", 795_904), ("shakespeare-large", 10_646_784)]
)
def test_nanogpts_parameter_counts(name, parameters):
    """As nanoGPT prints them: without the positions."""
    parameters_of = GPT(load_recipe(name).config(65)).parameters()
    shapes = [parameter.shape for path, parameter in parameters_of.items() if path != "positions.table"]
    assert sum(map(math.prod, shapes)) == parameters


def test_mingpts_sorting():
    recipe = load_recipe("sort")
    assert recipe.corpus == "sort"
    assert recipe.config(3) == GPTConfig(
        vocabulary_size=3,
        context_length=11,
        layers=3,
        heads=3,
        width=48,
        feed_forward_width=192,
        activation="gelu_tanh",
        bias=True,
        positions="learned",
        dropout=0.1,
    )
    check_training(
        recipe,
        **MINGPT,
        max_steps=2000,
        per_device_train_batch_size=64,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        warmup_steps=0,
    )


def test_mingpts_addition():
    recipe = load_recipe("addition")
    assert recipe.corpus == "addition"
    assert recipe.config(10) == GPTConfig(
        vocabulary_size=10,
        context_length=6,
        layers=2,
        heads=4,
        width=128,
        feed_forward_width=512,
        activation="gelu_tanh",
        bias=True,
        positions="learned",
        dropout=0.1,
    )
    check_training(
        recipe,
        **MINGPT,
        max_steps=-1,
        num_train_epochs=50,
        per_device_train_batch_size=512,
        learning_rate=6e-4,
        lr_scheduler_type="cosine",
    )


def test_the_python_recipes_differ_in_their_tokens_alone():
    characters, pairs = load_recipe("python"), load_recipe("python-bpe")
    assert characters.text == TextSettings("characters")
    assert pairs.text == TextSettings("bpe", 1024)
    for part in ("corpus", "model", "training"):
        assert getattr(characters, part) == getattr(pairs, part)


def test_settings_of_a_recipe():
    recipe = load_recipe(
        "python", ["max_steps=7", "dropout = 0.25", "positions=sinusoidal", "learning_rate=1", "max_steps=9"]
    )
    assert recipe.training.max_steps == 9
    assert recipe.training.learning_rate == 1.0
    assert recipe.config(5).dropout == 0.25
    assert recipe.config(5).positions == "sinusoidal"
    assert load_recipe("python", ["bias=True", "feed_forward_width=24"]).config(5).feed_forward_width == 24
    assert load_recipe("sort", ["load_best_model_at_end=true"]).training.load_best_model_at_end


def test_settings_of_the_text():
    assert load_recipe("python", ["tokenizer=bpe", "vocabulary_size=300"]).text == TextSettings("bpe", 300)
    assert load_recipe("python-bpe", ["vocabulary_size=2_000"]).text == TextSettings("bpe", 2000)
    changed = load_recipe("python-bpe", ["tokenizer='characters'", "vocabulary_size=0"])
    assert changed.text == load_recipe("python").text


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("shakespere", "", "there is no recipe 'shakespere'; did you mean 'shakespeare'"),
        ("zzz", "", "there is no recipe 'zzz'; there are addition, python, "),
        ("python", "max_step=3", "^there is no setting 'max_step'; did you mean 'max_steps'"),
        ("python", "max_steps", "'max_steps' is not name=value"),
        ("python", "max_steps=", "max_steps is ''; expected a value of type int"),
        ("python", "max_steps=many", "max_steps is 'many'; expected a value of type int"),
        ("python", "max_steps=1.5", "max_steps is 1.5; expected a value of type int"),
        ("python", "max_steps=[1]", r"max_steps is \[1\]; expected a value of type int"),
        ("python", "max_steps=-2", "max_steps is -2; expected a finite number of at least -1"),
        ("python", "bias=1", "bias is 1; expected a value of type bool"),
        ("python", "heads=3", "a width of 128 cannot be divided into 3 heads"),
        ("python", "activation=swish", "activation is 'swish'; expected one of "),
        ("python", "lr=3", "^there is no setting 'lr'; did you mean 'learning_rate'"),
        ("python", "learning_rate=nan", "learning_rate is nan"),
        ("python", "learning_rate=inf", "learning_rate is inf"),
        ("python", "output_dir=x", "there is no setting 'output_dir'"),
        ("python", "corpus=text", "there is no setting 'corpus'"),
        ("python", "zzz=1", "there is no setting 'zzz'; there are activation, "),
        (
            "python",
            "vocabulary_size=3",
            "vocabulary_size is decided by the text where its tokens are characters",
        ),
        ("python", "tokenizer=bpe", "vocabulary_size is 0; give how many tokens to learn"),
        ("python", "tokenizer=words", "tokenizer is 'words'; expected one of characters, bpe, wordpiece"),
        ("python-bpe", "vocabulary_size=20_000_000", "vocabulary_size is 20000000; give how many"),
        ("python-bpe", "vocabulary_size=true", "vocabulary_size is True; expected a value of type int"),
    ],
)
def test_settings_that_do_not_exist_or_fit(name, assignment, message):
    with pytest.raises(InputError, match=message):
        load_recipe(name, [assignment] if assignment else [])


def test_what_other_projects_call_a_setting_leads_to_one_that_exists():
    known = {field.name for part in (GPTConfig, TrainingArguments, TextSettings) for field in fields(part)}
    assert set(ELSEWHERE.values()) <= known | {"pretrained"}
    assert not set(ELSEWHERE) & known


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        (GPTConfig, {"n_layer": 3}, "there is no setting 'n_layer'; did you mean 'layers'?"),
        (GPTConfig, {"heads": 3, "contextlength": 8}, "'contextlength'; did you mean 'context_length'?"),
        (
            GPTConfig,
            {"n_head": 2, "n_embd": 8},
            "did you mean 'heads'? there is no setting 'n_embd'; did you",
        ),
        (GPTConfig, {"lr": 0.1}, "there is no setting 'lr'; there are activation, bias, "),
        (TrainingArguments, {"batch_size": 4}, "did you mean 'per_device_train_batch_size'?"),
        (TrainingArguments, {"eval_strategy": "steps"}, "did you mean 'eval_steps'?"),
        (TextSettings, {"vocab_size": 4}, "did you mean 'vocabulary_size'?"),
    ],
)
def test_a_keyword_that_does_not_exist_is_answered_by_the_one_that_was_meant(settings, given, message):
    for expected in (InputError, TypeError):
        with pytest.raises(expected, match=re.escape(message)):
            settings(**given)


def test_settings_show_their_names_to_completion():
    assert list(inspect.signature(GPTConfig).parameters) == [field.name for field in fields(GPTConfig)]
    with pytest.raises(TypeError, match="did you mean 'layers'"):
        replace(GPTConfig(), n_layer=3)


@pytest.mark.parametrize("name", list_recipes())
def test_a_table_makes_the_recipe_again(name):
    recipe = load_recipe(name, ["max_steps=7", "width=96", "seed=5"])
    table = json.loads(json.dumps(recipe.table()))
    assert make_recipe(table) == recipe
    assert make_recipe(table, ["max_steps=8"]).training.max_steps == 8
    assert table == recipe.table()


def test_a_run_from_before_architectures_were_recorded_is_a_gpts(tmp_path):
    recipe = load_recipe("sort", ["width=24"])
    table = recipe.table()
    del table["architecture"]
    (tmp_path / "run.json").write_text(json.dumps({"recipe": table, "data": []}))
    assert load_resumed_recipe(None, tmp_path, [], []) == (recipe, [])


def test_a_table_may_leave_out_what_has_a_default():
    recipe = make_recipe({"name": "mine", "description": "", "architecture": "gpt", "corpus": "text"})
    assert recipe.training == TrainingArguments()
    assert recipe.text == TextSettings()
    assert recipe.config(7) == GPTConfig(7)
    assert recipe.model.context_length == 1024
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"description": 3},
        {"architecture": "rnn"},
        {"architecture": ["gpt"]},
        {"corpus": "words"},
        {"corpus": ["text"]},
        {"model": "large"},
        {"model": [["width", 3]]},
        {"model": None},
        {"model": {"width": "large"}},
        {"model": {"breadth": 3}},
        {"model": {"vocabulary_size": 3}},
        {"model": {"context_length": 0}},
        {"training": 7},
        {"training": {"speed": 3}},
        {"training": {"max_steps": None}},
        {"text": "characters"},
        {"text": {"tokenizer": 3}},
        {"text": {"tokens": 3}},
    ],
    ids=str,
)
def test_damaged_tables(change):
    table = {"name": "mine", "description": "", "architecture": "gpt", "corpus": "text"}
    make_recipe(table)
    with pytest.raises(InputError):
        make_recipe({**table, **change})


@pytest.mark.parametrize("missing", ["name", "description", "architecture", "corpus"])
def test_tables_that_lack_a_part(missing):
    table = {"name": "mine", "description": "", "architecture": "gpt", "corpus": "text"}
    del table[missing]
    with pytest.raises(InputError, match=f"the recipe is damaged: '{missing}'"):
        make_recipe(table)


@pytest.mark.parametrize("table", [[], ["name"], "name", 3, None], ids=str)
def test_what_is_no_table(table):
    with pytest.raises(InputError, match="the recipe is damaged"):
        make_recipe(table)
