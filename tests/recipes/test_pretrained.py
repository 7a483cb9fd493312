"""Fine-tuning: a run that starts from a model folder, and what it needs of that folder later: nothing."""

import json
import shutil

import numpy as np
import pytest
from common.tiny_runs import assert_same_end, metrics, names
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from minitransformer.data import encode, load_tokenizer
from minitransformer.errors import ChangedSettingError, InputError
from minitransformer.models import GPT, GPTConfig
from minitransformer.pretrained.model_folder import load_model, save_model
from minitransformer.recipes import load_recipe, make_recipe, read_pretrained_folder
from minitransformer.recipes.cost import estimate_cost
from minitransformer.recipes.display import Display
from minitransformer.recipes.resuming import load_resumed_recipe
from minitransformer.recipes.run import train_recipe

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
OTHER = "the lazy fox jumps over the quick brown dog.\n" * 40
SMALL = ["layers=1", "heads=2", "width=16", "context_length=16", "dropout=0.1"]
SHORT = ["max_steps=8", "eval_steps=4", "save_steps=4", "learning_rate=1e-3", "warmup_steps=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two texts, and a model of the first in ``base``."""
    root = tmp_path_factory.mktemp("pretrained")
    (root / "first.txt").write_text(TEXT)
    (root / "other.txt").write_text(OTHER)
    recipe = load_recipe("shakespeare", [*SMALL, *SHORT, "max_steps=60", "learning_rate=1e-2"])
    train_recipe(recipe, root / "base", [root / "first.txt"])
    return root


def fine_tuning(place, *settings, name="shakespeare", base="base"):
    return load_recipe(name, [f"pretrained={place / base}", *SHORT, *settings])


def test_the_run_goes_on_with_that_model_and_its_tokenizer(place, tmp_path):
    model, material = train_recipe(fine_tuning(place), tmp_path / "run", [place / "other.txt"])
    base = load_model(place / "base")
    assert model.config == base.config == load_model(tmp_path / "run").config
    assert material.tokenizer.to_str() == load_tokenizer(place / "base").to_str()
    started, ended = metrics(tmp_path / "run")[0], metrics(tmp_path / "run")[-1]
    assert ended["val_loss"] < started["val_loss"] < 0.75 * np.log(base.config.vocabulary_size)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["recipe"]["pretrained"]
    assert recorded["folder"] == str((place / "base").resolve())
    assert len(recorded["sha256"]) == 64


def test_without_a_step_it_is_that_model(place, tmp_path):
    train_recipe(fine_tuning(place, "max_steps=0"), tmp_path / "run", [place / "other.txt"])
    ours, theirs = load_model(tmp_path / "run"), load_model(place / "base")
    np.testing.assert_array_equal(ours.flat.values, theirs.flat.values)


class StoppedError(Exception):
    """As if the process had ended here."""


class StopAt(Display):
    def __init__(self, step):
        self.at = step

    def on_step_end(self, trainer, result):
        if trainer.step == self.at:
            raise StoppedError


@pytest.fixture
def base(place, tmp_path):
    """A copy of the model, to be lost."""
    shutil.copytree(place / "base", tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize("stop", [2, 6])
def test_a_stopped_run_ends_the_same_even_if_the_model_is_gone(place, base, tmp_path, stop):
    run, data = tmp_path / "run", [place / "other.txt"]
    with pytest.raises(StoppedError):
        train_recipe(fine_tuning(tmp_path), run, data, display=StopAt(stop))
    if stop > 4:
        shutil.rmtree(base)
    resumed, same_data = load_resumed_recipe(None, run, [f"pretrained={base}"], ())
    train_recipe(resumed, run, same_data, resume=True)
    train_recipe(fine_tuning(place), tmp_path / "expected", data)
    assert_same_end(run, tmp_path / "expected")
    longer, _ = load_resumed_recipe(None, run, ["max_steps=10"], ())
    train_recipe(longer, run, data, resume=True)
    assert metrics(run)[-1]["step"] == 10


def test_before_the_first_checkpoint_the_model_must_be_what_it_was(place, base, tmp_path):
    with pytest.raises(StoppedError):
        train_recipe(fine_tuning(tmp_path), tmp_path / "run", [place / "other.txt"], display=StopAt(2))
    model = load_model(base)
    model.norm.gain.value[0] += 1
    save_model(model, base)
    resumed, data = load_resumed_recipe(None, tmp_path / "run", (), ())
    with pytest.raises(InputError, match=r"the weights in .*base have changed since the run was started"):
        train_recipe(resumed, tmp_path / "run", data, resume=True)


def test_a_run_goes_on_from_where_it_has_started(place, tmp_path):
    train_recipe(fine_tuning(place), tmp_path / "run", [place / "other.txt"])
    with pytest.raises(ChangedSettingError, match=r"has started from .*base; start a new run"):
        load_resumed_recipe(None, tmp_path / "run", [f"pretrained={tmp_path / 'run'}"], ())
    with pytest.raises(ChangedSettingError, match="has started from random weights; start a new run"):
        load_resumed_recipe(None, place / "base", [f"pretrained={tmp_path / 'run'}"], ())


def test_an_unfinished_run_gives_its_last_checkpoint(place, base, tmp_path):
    (base / "config.json").unlink()
    model, _ = train_recipe(fine_tuning(tmp_path, "max_steps=0"), tmp_path / "run", [place / "other.txt"])
    np.testing.assert_array_equal(model.flat.values, load_model(base / "checkpoint-60").flat.values)


def test_dropout_and_fewer_positions_can_be_set(place, tmp_path):
    recipe = fine_tuning(place, "dropout=0.3", "context_length=10", "max_steps=0")
    model, material = train_recipe(recipe, tmp_path / "run", [place / "other.txt"])
    assert (model.config.dropout, model.config.context_length) == (0.3, 10)
    assert material.train.length == 10
    base = load_model(place / "base").parameters()
    for path, parameter in model.parameters().items():
        theirs = base[path].value[:10] if path == "positions.table" else base[path].value
        np.testing.assert_array_equal(parameter.value, theirs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("layers=2", "layers is 2, but the model in .*base comes with layers 1; of what is pretrained only "),
        ("width=32", "width is 32, but the model in .*base comes with width 16; .* dropout and a smaller"),
        ("context_length=17", "context_length is 17, but the model in .*base has 16 positions"),
        ("tokenizer=bpe", "tokenizer is 'bpe', but the model in .*base comes with its tokenizer"),
        ("vocabulary_size=300", "vocabulary_size is 300, but the model in .*base comes with its tokenizer"),
        ("dropout=2", "dropout is 2; expected a"),
    ],
)
def test_other_settings_of_the_model_are_refused(place, setting, message):
    with pytest.raises(InputError, match=message):
        fine_tuning(place, setting)
    table = json.loads(json.dumps(fine_tuning(place).table()))
    with pytest.raises(InputError, match=message):
        make_recipe(table, [setting])


def test_settings_that_repeat_what_the_model_is_are_fine(place):
    assert fine_tuning(place, "layers=1", "width=16") == fine_tuning(place)


def test_a_recipe_of_byte_pairs_takes_the_models_tokenizer(place):
    recipe = fine_tuning(place, name="python-bpe")
    assert recipe.text.tokenizer == "pretrained"
    assert recipe.model == fine_tuning(place).model
    assert make_recipe(json.loads(json.dumps(recipe.table()))) == recipe


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["pretrained=nowhere"], "pretrained is 'nowhere'; expected the folder of a trained model"),
        (["pretrained="], "pretrained is ''; expected the folder of a trained model"),
        (["pretrained"], "'pretrained' is not name=value"),
        (["pretrained=."], "config.json is missing"),
        (["tokenizer=pretrained"], "comes with a model; give that by pretrained=DIR"),
        (["init_from=gpt2"], "there is no setting 'init_from'; did you mean 'pretrained'"),
    ],
)
def test_no_model_to_start_from(tmp_path, monkeypatch, assignments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        load_recipe("shakespeare", assignments)


@pytest.mark.parametrize(
    "pretrained",
    [{"folder": 3}, "base", {"folder": "base", "vocabulary_size": "many", "context_length": 3}],
    ids=str,
)
def test_a_damaged_record_of_the_start(pretrained):
    table = {"name": "mine", "description": "", "corpus": "text", "pretrained": pretrained}
    with pytest.raises(InputError, match="the recipe is damaged"):
        make_recipe(table)


def test_characters_that_the_model_never_saw(place, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT + "QUEEN")
    with pytest.raises(InputError, match="characters that the model never saw: 'E'"):
        train_recipe(fine_tuning(place), tmp_path / "run", [tmp_path / "text.txt"])
    assert names(tmp_path) == ["text.txt"]


def test_a_padded_vocabulary_is_fine_and_one_that_is_too_small_is_not(place, tmp_path):
    tokenizer = load_tokenizer(place / "base")
    count = tokenizer.get_vocab_size()
    for rows, name in ((count + 12, "padded"), (count - 1, "small")):
        (tmp_path / name).mkdir()
        save_model(GPT(GPTConfig(rows, 16, 1, 2, 16)).build(seed=0), tmp_path / name)
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
    model, _ = train_recipe(fine_tuning(tmp_path, base="padded"), tmp_path / "run", [place / "other.txt"])
    assert model.config.vocabulary_size == count + 12
    with pytest.raises(InputError, match="the folder needs the tokenizer that the model was trained with"):
        train_recipe(fine_tuning(tmp_path, base="small"), tmp_path / "not", [place / "other.txt"])


def test_a_task_starts_from_a_model_of_the_same_task(place, tmp_path):
    train_recipe(load_recipe("sort", ["max_steps=2", "layers=1", "heads=2", "width=16"]), tmp_path / "sort")
    again = load_recipe("sort", [f"pretrained={tmp_path / 'sort'}", "max_steps=2"])
    model, _ = train_recipe(again, tmp_path / "again")
    assert model.config.width == 16
    resumed, _ = load_resumed_recipe(None, tmp_path / "again", ["max_steps=3"], ())
    shutil.rmtree(tmp_path / "sort")
    train_recipe(resumed, tmp_path / "again", resume=True)
    with pytest.raises(InputError, match="has other tokens than the task 'sort'"):
        train_recipe(load_recipe("sort", [f"pretrained={place / 'base'}"]), tmp_path / "not")
    assert not (tmp_path / "not").exists()


def test_the_cost_is_that_of_the_model(place):
    cost = estimate_cost(fine_tuning(place), [place / "other.txt"])
    assert cost.parameters == load_model(place / "base").parameter_count()
    assert cost.steps == 8


def test_a_model_of_hugging_faces(transformers, tmp_path):
    """Written by ``transformers`` itself, of byte pairs, with more rows than tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    config = transformers.GPT2Config(vocab_size=320, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save(str(tmp_path / "gpt2" / "tokenizer.json"))
    (tmp_path / "text.txt").write_text(OTHER * 4 + "QUEEN né")
    model, material = train_recipe(
        fine_tuning(tmp_path, base="gpt2"), tmp_path / "run", [tmp_path / "text.txt"]
    )
    assert (model.config.vocabulary_size, model.config.layers, model.config.dropout) == (320, 2, 0.1)
    assert material.train.tokens[:99].tolist() == encode(tokenizer, OTHER)[:99].tolist()
    assert transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "run").config.n_layer == 2


def test_a_folder_may_be_called_like_a_number():
    assert read_pretrained_folder(["pretrained=1_000"]) == "1_000"
    assert read_pretrained_folder(["max_steps=3", "pretrained='a b'"]) == "a b"
    assert read_pretrained_folder(["max_steps=3"]) is None
