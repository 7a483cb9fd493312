"""Corpora: what is learned from, what is held out, and what a trained model is judged by."""

import hashlib
import json
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from minitransformer.data import TASKS, Sequences, python_corpus, text_corpus
from minitransformer.data.corpus import CORPUS, corpus_of, judged
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


@pytest.fixture
def trained(tmp_path):
    """Write the record of what a model was trained on; return the model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()

    def write(source):
        (folder / CORPUS).write_text(json.dumps(source))
        return folder

    return write


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
    assert corpus_of("python", "python").source["corpus"] == "python"
    assert corpus_of("python", "python", [texts]).source["corpus"] == "text"
    assert corpus_of("mine", "text", [texts]).source["corpus"] == "text"
    with pytest.raises(
        InputError, match="the recipe 'mine' learns from a text of yours: give it with --data"
    ):
        corpus_of("mine", "text")


def check_validation_part(text, part):
    assert part == "validation"
    assert text.read() == TEXT[int(len(TEXT) * 0.9) :]


def test_a_model_is_judged_by_the_validation_part_of_its_text(texts, trained):
    folder = trained(text_corpus(texts).source)
    check_validation_part(*judged(folder))
    check_validation_part(*judged(folder, [texts / "*.txt"]))
    (folder.parent / "copy").write_bytes(TEXT.encode())
    check_validation_part(*judged(folder, [folder.parent / "copy"]))


@pytest.mark.parametrize("pattern", ["*.txt", "[ab].txt", "?.txt"])
def test_a_model_whose_text_was_named_by_a_pattern_finds_it_again(texts, trained, pattern):
    check_validation_part(*judged(trained(text_corpus(texts / pattern).source)))


def test_a_model_of_the_python_corpus(python, trained):
    text, part = judged(trained(python.source))
    assert (text.spans, part) == (python.validation.spans, "validation")


def test_another_text_is_judged_as_a_whole_document_by_document(texts, trained):
    folder = trained(text_corpus(texts / "a.txt").source)
    text, part = judged(folder, [texts])
    assert part == "whole"
    assert text.read() == TEXT
    assert [(path.name, start) for path, start, _ in text.spans] == [("a.txt", 0), ("b.txt", 0)]


def test_a_model_without_a_record_is_judged_by_a_whole_text(texts, tmp_path):
    text, part = judged(tmp_path, [texts / "a.txt"])
    assert (text.read(), part) == (TEXT[:100], "whole")
    with pytest.raises(InputError, match="does not say what it was trained on; give a text file with --data"):
        judged(tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_of_a_task_is_judged_by_what_was_held_out(trained, texts, name):
    folder = trained({"corpus": name})
    examples, part = judged(folder)
    assert part == "validation"
    assert isinstance(examples, Sequences)
    for ours, expected in zip(examples.ids, TASKS[name]().validation.ids, strict=True):
        np.testing.assert_array_equal(ours, expected)
    with pytest.raises(InputError, match=f"was trained on the task '{name}', which makes its own examples"):
        judged(folder, [texts])


def test_a_text_that_has_changed_or_gone(texts, trained):
    folder = trained(text_corpus(texts / "a.txt").source)
    (texts / "a.txt").write_text("something else")
    with pytest.raises(InputError, match="has changed since, so that its validation part is not known"):
        judged(folder)
    (texts / "a.txt").unlink()
    with pytest.raises(InputError, match="is gone; say where it is with --data"):
        judged(folder)
    with pytest.raises(InputError, match="no file matches"):
        judged(trained({**text_corpus(texts / "b.txt").source, "paths": [str(texts / "c*")]}))


def test_a_python_corpus_that_has_changed(trained):
    with pytest.raises(InputError, match="has changed since"):
        judged(trained({"corpus": "python", "sha256": "0"}))


@pytest.mark.parametrize(
    "source",
    [
        {},
        {"corpus": "words"},
        {"corpus": 3},
        {"corpus": ["text"]},
        {"corpus": "text", "paths": "texts"},
        {"corpus": "text", "paths": [3]},
        {"corpus": "text", "paths": []},
        {"corpus": "text"},
    ],
    ids=str,
)
def test_a_damaged_record(trained, source):
    with pytest.raises(InputError, match=r"corpus\.json is damaged: it does not say what"):
        judged(trained(source))
