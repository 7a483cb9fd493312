"""Corpora: which text is trained on and which is validated with."""

import hashlib
import sys
import sysconfig
from pathlib import Path

import pytest

from minitransformer.data import python_corpus, text_corpus
from minitransformer.data.corpus import load_corpus
from minitransformer.errors import InputError

TEXT = "naïve\r\n\ttext\u2028 😀\n" * 20


@pytest.fixture
def texts(tmp_path):
    """A folder of two texts, TEXT together."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_bytes(TEXT[:100].encode())
    (folder / "b.txt").write_bytes(TEXT[100:].encode())
    return folder


@pytest.fixture(scope="module")
def python():
    """The corpus of this Python's library."""
    return python_corpus()


def test_python_corpus_is_the_standard_library_without_its_tests(python):
    source = python.source
    root = Path(sysconfig.get_path("stdlib"))
    files = source["train_files"] + source["validation_files"]
    assert {"ast.py", "json/decoder.py", "random.py"} <= set(files)
    assert not any("test" in Path(name).parts or "site-packages" in name for name in files)
    for part, text in (("train_files", python.train), ("validation_files", python.validation)):
        assert text.read().encode() == b"".join((root / name).read_bytes() for name in source[part])
        assert source[part] == sorted(source[part])
    assert not set(source["train_files"]) & set(source["validation_files"])
    assert 0.02 < python.validation.byte_count / python.train.byte_count < 0.12
    assert source["python"] == ".".join(map(str, sys.version_info[:3]))
    assert python_corpus().source == source


def test_python_files_that_are_not_ascii_are_left_out_and_named(python):
    root = Path(sysconfig.get_path("stdlib"))
    left_out = python.source["left_out_not_ascii"]
    assert left_out
    assert not any((root / name).read_bytes().isascii() for name in left_out)
    assert python.train.read().isascii()


def test_a_python_without_a_library_to_learn_from(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(
        InputError, match="holds no Python source to learn from; give a text file with --data"
    ):
        python_corpus()


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 100, 160])
def test_nine_tenths_of_the_characters_are_to_train_on(tmp_path, length):
    text = TEXT[:length]
    (tmp_path / "text").write_bytes(text.encode())
    corpus = text_corpus(tmp_path / "text")
    assert corpus.train.read() == text[: int(length * 0.9)]
    assert corpus.validation.read() == text[int(length * 0.9) :]
    assert corpus.source == {
        "corpus": "text",
        "paths": [str((tmp_path / "text").resolve())],
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def test_several_paths_are_taken_in_order(texts, tmp_path):
    (tmp_path / "c").write_text("last")
    corpus = text_corpus(texts / "b.txt", str(texts / "a*"), tmp_path / "c")
    assert corpus.train.read() + corpus.validation.read() == TEXT[100:] + TEXT[:100] + "last"
    assert corpus.source["paths"] == [
        str(path.resolve()) for path in (texts / "b.txt", texts / "a*", tmp_path / "c")
    ]


def test_a_file_that_is_named_twice_is_taken_once(texts, tmp_path, monkeypatch):
    """Else its second copy would be validated with after the first was trained on."""
    monkeypatch.chdir(tmp_path)
    corpus = text_corpus(texts, texts / "a.txt", "texts/../texts/*.txt", "texts/**")
    assert corpus.train.read() + corpus.validation.read() == TEXT


def test_the_record_says_what_was_left_out(texts):
    (texts / "runs" / "model").mkdir(parents=True)
    for name in ("runs/model/model.safetensors", "attention.png"):
        (texts / name).write_bytes(b"\xff")
    corpus = text_corpus(texts, texts / "a.txt")
    assert corpus.train.read() + corpus.validation.read() == TEXT
    left_out = [str(texts.resolve() / name) for name in ("attention.png", "runs/model")]
    assert corpus.source["left_out"] == left_out


def test_which_corpus_a_recipe_has(texts):
    assert load_corpus("python", "python").source["corpus"] == "python"
    assert load_corpus("python", "python", [texts]).source["corpus"] == "text"
    assert load_corpus("mine", "text", [texts]).source["corpus"] == "text"
    with pytest.raises(
        InputError, match="the recipe 'mine' learns from a text of yours: give it with --data"
    ):
        load_corpus("mine", "text")
