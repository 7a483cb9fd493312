"""Text in: corpora, tokenizers, recipes, evaluation."""

import lzma
import math
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from minitransformer.corpus import python_corpus, text_corpus
from minitransformer.errors import InputError
from minitransformer.evaluation import evaluate
from minitransformer.models import GPT, GPTConfig
from minitransformer.recipes import load_recipe, recipe_names
from minitransformer.tokenizer import CHUNK, CHUNKS, character_tokenizer, encode, load_tokenizer


def test_python_corpus_is_the_standard_library_without_its_tests():
    corpus = python_corpus()
    source = corpus.source
    root = Path(sysconfig.get_path("stdlib"))
    files = source["train_files"] + source["validation_files"]
    assert {"ast.py", "json/decoder.py", "random.py"} <= set(files)
    assert not any("test" in Path(name).parts or "site-packages" in name for name in files)
    assert (
        "".join((root / name).read_bytes().decode("ascii") for name in source["train_files"]) == corpus.train
    )
    assert not set(source["train_files"]) & set(source["validation_files"])
    assert 0.02 < len(corpus.validation) / len(corpus.train) < 0.12
    assert source["python"] == ".".join(map(str, sys.version_info[:3]))
    assert python_corpus().source["sha256"] == source["sha256"]


def test_text_corpus_keeps_every_byte(tmp_path):
    text = "naïve\r\n\ttext\u2028 😀\n" * 20
    (tmp_path / "text").write_bytes(text.encode())
    corpus = text_corpus(tmp_path / "text")
    assert corpus.train + corpus.validation == text
    assert len(corpus.train) == int(len(text) * 0.9)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "is empty; expected text"),
        (b"abc\xff", r"is not UTF-8 text: byte 0xff at offset 3 can't be decoded"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        text_corpus(path)


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(InputError, match="is a folder; expected a text file"):
        text_corpus(tmp_path)


def test_character_tokenizer_round_trips(tmp_path):
    text = "".join(map(chr, [*range(1, 300), 0x2028, 0x1F600])) * 2
    tokenizer = character_tokenizer(text)
    ids = encode(tokenizer, text)
    characters = sorted(set(text))
    assert ids.tolist() == [characters.index(character) for character in text]
    assert tokenizer.decode(ids.tolist()) == text
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    np.testing.assert_array_equal(encode(load_tokenizer(tmp_path), text), ids)


def test_long_texts_are_encoded_in_pieces():
    text = "ab c\n" * (CHUNK * CHUNKS // 4)
    ids = encode(character_tokenizer(text), text)
    np.testing.assert_array_equal(ids, np.tile([2, 3, 1, 4, 0], len(text) // 5))


def test_unknown_characters_are_named():
    with pytest.raises(InputError, match=r"never saw: 'z' \(U\+007A\), '€' \(U\+20AC\); it knows 2"):
        encode(character_tokenizer("ab"), "a€z")


def test_transformers_reads_the_tokenizer(tmp_path, transformers):
    text = "First Citizen:\nBefore we proceed"
    tokenizer = character_tokenizer(text)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs(text)["input_ids"] == encode(tokenizer, text).tolist()


def test_a_damaged_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="is missing"):
        load_tokenizer(tmp_path)
    path.write_text('{"version": "1.0", "model": {"type"')
    with pytest.raises(InputError, match="is not a tokenizer file"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 25])
def test_evaluation_predicts_every_token_but_the_first_once(length):
    text = ("añb\n" * 10)[:length]
    tokenizer = character_tokenizer("añb\n")
    model = GPT(GPTConfig(4, 8, 1, 1, 8)).build(seed=0, dtype="float64")
    ids = encode(tokenizer, text)
    nats = 0.0
    for start in range(0, length - 1, 8):
        logits, _ = model({"ids": ids[None, start : min(start + 8, length - 1)]})
        probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
        for position, row in enumerate(probabilities):
            nats -= math.log(row[ids[start + position + 1]])
    score = evaluate(model, tokenizer, text)
    predicted_bytes = len(text[1:].encode())
    assert score["val_loss"] == pytest.approx(nats / (length - 1), rel=1e-12)
    assert score["perplexity"] == pytest.approx(math.exp(nats / (length - 1)))
    assert score["bits_per_byte"] == pytest.approx(nats / math.log(2) / predicted_bytes)
    assert score["xz_bits_per_byte"] == 8 * len(lzma.compress(text.encode(), preset=9)) / len(text.encode())
    assert (score["tokens"], score["bytes"]) == (length - 1, predicted_bytes)


def test_evaluation_needs_two_tokens():
    model = GPT(GPTConfig(4, 8, 1, 1, 8)).build()
    with pytest.raises(InputError, match="has 1 tokens; expected at least 2"):
        evaluate(model, character_tokenizer("añb\n"), "a")


def test_recipes():
    assert {"python", "shakespeare"} <= set(recipe_names())
    assert load_recipe("python").corpus == "python"
    laptop = load_recipe("shakespeare")
    assert laptop.config(65) == GPTConfig(65, 64, 4, 4, 128, activation="gelu_exact", bias=False)
    assert (laptop.training.max_steps, laptop.training.per_device_train_batch_size) == (2000, 12)


def test_settings_of_a_recipe():
    recipe = load_recipe(
        "python", ["max_steps=7", "dropout = 0.25", "positions=sinusoidal", "learning_rate=1", "max_steps=9"]
    )
    assert recipe.training.max_steps == 9
    assert recipe.training.learning_rate == 1.0
    assert recipe.config(5).dropout == 0.25
    assert recipe.config(5).positions == "sinusoidal"
    assert load_recipe("python", ["bias=True", "feed_forward_width=24"]).config(5).feed_forward_width == 24


@pytest.mark.parametrize(
    ("name", "assignment", "message"),
    [
        ("shakespere", "", "there is no recipe 'shakespere'; did you mean 'shakespeare'"),
        ("python", "max_step=3", "there is no setting 'max_step'; did you mean 'max_steps'"),
        ("python", "max_steps", "'max_steps' is not name=value"),
        ("python", "max_steps=many", "max_steps is 'many'; expected a value of type int"),
        ("python", "max_steps=1.5", "max_steps is 1.5; expected a value of type int"),
        ("python", "bias=1", "bias is 1; expected a value of type bool"),
        ("python", "heads=3", "a width of 128 cannot be divided into 3 heads"),
        ("python", "vocabulary_size=3", "there is no setting 'vocabulary_size': the text decides it"),
        ("python", "lr=3", "there is no setting 'lr'; did you mean 'learning_rate'"),
        ("python", "learning_rate=nan", "learning_rate is nan"),
        ("python", "zzz=1", "there is no setting 'zzz'; there are activation, "),
    ],
)
def test_settings_that_do_not_exist_or_fit(name, assignment, message):
    with pytest.raises(InputError, match=message):
        load_recipe(name, [assignment] if assignment else [])
