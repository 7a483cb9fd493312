"""Validation data: the part of its own data that a trained model is evaluated on, or all of another text."""

import json

import numpy as np
import pytest

from minitransformer.data import TASKS, Sequences, python_corpus, text_corpus
from minitransformer.errors import InputError
from minitransformer.evaluation.validation import load_validation
from minitransformer.system.file_names import CORPUS

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


def check_validation_part(text, part):
    assert part == "validation"
    assert text.read() == TEXT[int(len(TEXT) * 0.9) :]


def test_a_model_is_evaluated_on_the_validation_part_of_its_text(texts, trained):
    folder = trained(text_corpus(texts).source)
    check_validation_part(*load_validation(folder))
    check_validation_part(*load_validation(folder, [texts / "*.txt"]))
    (folder.parent / "copy").write_bytes(TEXT.encode())
    check_validation_part(*load_validation(folder, [folder.parent / "copy"]))


@pytest.mark.parametrize("pattern", ["*.txt", "[ab].txt", "?.txt"])
def test_a_model_whose_text_was_named_by_a_pattern_finds_it_again(texts, trained, pattern):
    check_validation_part(*load_validation(trained(text_corpus(texts / pattern).source)))


def test_a_model_of_the_python_corpus(python, trained):
    text, part = load_validation(trained(python.source))
    assert (text.spans, part) == (python.validation.spans, "validation")


def test_another_text_is_evaluated_as_a_whole_document_by_document(texts, trained):
    folder = trained(text_corpus(texts / "a.txt").source)
    text, part = load_validation(folder, [texts])
    assert part == "whole"
    assert text.read() == TEXT
    assert [(path.name, start) for path, start, _ in text.spans] == [("a.txt", 0), ("b.txt", 0)]


def test_a_model_without_a_record_is_evaluated_on_a_whole_text(texts, tmp_path):
    text, part = load_validation(tmp_path, [texts / "a.txt"])
    assert (text.read(), part) == (TEXT[:100], "whole")
    with pytest.raises(InputError, match="does not say what it was trained on; give a text file with --data"):
        load_validation(tmp_path)


@pytest.mark.parametrize("name", TASKS)
def test_a_model_of_a_task_is_evaluated_on_its_validation_examples(trained, texts, name):
    folder = trained({"corpus": name})
    examples, part = load_validation(folder)
    assert part == "validation"
    assert isinstance(examples, Sequences)
    for ours, expected in zip(examples.ids, TASKS[name]().validation.ids, strict=True):
        np.testing.assert_array_equal(ours, expected)
    with pytest.raises(InputError, match=f"was trained on the task '{name}', which makes its own examples"):
        load_validation(folder, [texts])


def test_a_text_that_has_changed_or_is_missing(texts, trained):
    folder = trained(text_corpus(texts / "a.txt").source)
    (texts / "a.txt").write_text("something else")
    with pytest.raises(InputError, match="has changed since, so that its validation part is not known"):
        load_validation(folder)
    (texts / "a.txt").unlink()
    with pytest.raises(InputError, match="is missing; say where it is with --data"):
        load_validation(folder)
    with pytest.raises(InputError, match="no file matches"):
        load_validation(trained({**text_corpus(texts / "b.txt").source, "paths": [str(texts / "c*")]}))


def test_a_python_corpus_that_has_changed(trained):
    with pytest.raises(InputError, match="has changed since"):
        load_validation(trained({"corpus": "python", "sha256": "0"}))


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
        load_validation(trained(source))
