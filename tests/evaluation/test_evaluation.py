"""Evaluation: what a text costs, token by token and byte by byte, and how many answers are right."""

import lzma
import math

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minitransformer.data import TASKS, Sequences, TokenWindows, character_tokenizer, encode
from minitransformer.data.text import Text, open_text
from minitransformer.data.tokenizer import LETTERS
from minitransformer.errors import InputError
from minitransformer.evaluation import scores
from minitransformer.evaluation.scores import evaluate_task, evaluate_text, predict, sampled_loss, whole_loss
from minitransformer.generation.sampling import generate
from minitransformer.models import GPT, GPTConfig
from minitransformer.training import TrainingArguments, train_step
from minitransformer.training.optimisers import make_optimiser

RANDOM = np.random.default_rng(0)


@pytest.fixture
def written(tmp_path):
    def write(content):
        (tmp_path / "text").write_bytes(content.encode())
        return open_text([tmp_path / "text"])

    return write


def random_model(vocabulary_size):
    model = GPT(GPTConfig(vocabulary_size, 8, 1, 1, 8)).build(seed=0, dtype="float64")
    model.flat.values[...] = RANDOM.normal(0, 0.5, model.flat.values.shape)
    return model


def nats_by_hand(model, ids, length):
    """Return the sum of −log p over all tokens but the first, window by window."""
    nats = 0.0
    for start in range(0, len(ids) - 1, length):
        logits, _ = model({"ids": ids[None, start : min(start + length, len(ids) - 1)]})
        probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(-1, keepdims=True)
        for position, row in enumerate(probabilities):
            nats -= math.log(row[ids[start + position + 1]])
    return nats


def check_against_nats_by_hand(model, tokenizer, ids, text, first_bytes):
    score = evaluate_text(model, tokenizer, ids, text)
    nats, predicted = nats_by_hand(model, ids, 8), len(ids) - 1
    content = text.read().encode()
    assert score["val_loss"] == pytest.approx(nats / predicted, rel=1e-12)
    assert score["perplexity"] == pytest.approx(math.exp(nats / predicted))
    assert score["bits_per_byte"] == pytest.approx(nats / math.log(2) / (len(content) - first_bytes))
    assert score["xz_bits_per_byte"] == 8 * len(lzma.compress(content, preset=9)) / len(content)
    assert (score["tokens"], score["bytes"]) == (predicted, len(content) - first_bytes)


@pytest.mark.parametrize("length", [2, 8, 9, 10, 25])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_every_token_but_the_first_is_predicted_once(written, monkeypatch, length, rows):
    monkeypatch.setattr(scores, "BATCH_TOKENS", rows * 8)
    text = written(("ñab\n" * 10)[:length])
    tokenizer = character_tokenizer("ñab\n")
    check_against_nats_by_hand(random_model(4), tokenizer, encode(tokenizer, text.read()), text, 2)


def test_the_first_token_may_be_half_a_character(written):
    """Then the bytes that are predicted begin within the character."""
    vocabulary = {letter: index for index, letter in enumerate(["<|endoftext|>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    text = written("😀 ¿qué?")
    ids = encode(tokenizer, text.read())
    assert len(ids) == text.byte_count == 12
    check_against_nats_by_hand(random_model(257), tokenizer, ids, text, 1)


def test_separators_are_predicted_but_are_no_bytes(written):
    text = written("abab")
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "<|endoftext|>": 2}, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    check_against_nats_by_hand(random_model(3), tokenizer, np.array([0, 1, 2, 0, 1]), text, 1)
    check_against_nats_by_hand(random_model(3), tokenizer, np.array([2, 0, 1, 0, 1]), text, 0)


def test_xz_is_left_out_where_it_would_take_long(written, monkeypatch):
    text, tokenizer = written("abab"), character_tokenizer("ab")
    for largest, known in ((3, False), (4, True)):
        monkeypatch.setattr(scores, "LARGEST_FOR_XZ", largest)
        score = evaluate_text(random_model(2), tokenizer, np.array([0, 1, 0, 1]), text)
        assert (score["xz_bits_per_byte"] is not None) == known


def test_a_text_without_bytes_to_predict_has_no_bits_per_byte(written):
    ((path, _, _),) = written("a").spans
    tokenizer = Tokenizer(models.BPE({"a": 0, "<|endoftext|>": 1}, []))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    score = evaluate_text(random_model(2), tokenizer, np.array([0, 1]), Text([(path, 0, 1)]))
    assert (score["bits_per_byte"], score["bytes"], score["tokens"]) == (None, 0, 1)


def test_one_token_can_not_be_evaluated(written):
    with pytest.raises(InputError, match="there are 1 tokens; expected at least 2"):
        evaluate_text(random_model(2), character_tokenizer("ab"), np.array([0]), written("a"))


def test_progress_is_told_in_windows(written, monkeypatch):
    monkeypatch.setattr(scores, "BATCH_TOKENS", 3 * 8)
    text, reports = written("ab" * 41), []
    tokenizer = character_tokenizer("ab")
    evaluate_text(
        random_model(2), tokenizer, encode(tokenizer, text.read()), text, lambda *told: reports.append(told)
    )
    assert reports == [(3, 11), (6, 11), (9, 11), (11, 11)]


def test_the_sample_is_spread_evenly_and_always_the_same(monkeypatch):
    model, windows = random_model(5), TokenWindows(RANDOM.integers(0, 5, 8 * 100 + 1), 8)
    assert sampled_loss(model, windows) == whole_loss(model, windows)
    monkeypatch.setattr(scores, "SAMPLED_PLACES", 12)
    spread = [8 * place for place in (0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99)]
    expected = np.mean([scores.mean_loss(model, windows, [place]) for place in spread])
    assert sampled_loss(model, windows) == pytest.approx(expected, rel=1e-12)
    assert sampled_loss(model, windows) == sampled_loss(model, windows) != whole_loss(model, windows)


@pytest.fixture(scope="module")
def half_taught():
    """A model that has seen the sorting task for a short while: some answers are right, some are wrong."""
    task = TASKS["sort"]()
    model = GPT(GPTConfig(3, 11, 2, 2, 16)).build(seed=0)
    optimiser = make_optimiser(model, TrainingArguments())
    for number in range(60):
        batch = task.train.collate(task.train.training_places(number, 64, seed=0))
        train_step(model, optimiser, [batch], 3e-3, 1.0)
    return model, task


def test_exact_match_is_what_greedy_generation_gets_right(half_taught, monkeypatch):
    model, task = half_taught
    monkeypatch.setattr(scores, "BATCH_TOKENS", 40 * 11)
    correct = 0
    for ids, targets in zip(task.validation.ids, task.validation.targets, strict=True):
        answer = targets[targets != -100].tolist()
        prompt = ids[: len(ids) + 1 - len(answer)].tolist()
        correct += list(generate(model, prompt, len(answer), temperature=0)) == answer
    reports = []
    score = evaluate_task(model, task.validation, lambda *told: reports.append(told))
    assert 20 < correct < 162
    assert (score["correct"], score["examples"]) == (correct, 182)
    assert score["exact_match"] == correct / 182
    assert score["val_loss"] == whole_loss(model, task.validation)
    assert score["perplexity"] == pytest.approx(math.exp(score["val_loss"]))
    assert reports == [(40, 182), (80, 182), (120, 182), (160, 182), (182, 182)]


def test_predictions_are_padded_where_examples_are_shorter(monkeypatch):
    model = random_model(5)
    lengths = [3, 8, 1, 5, 2]
    ids = [RANDOM.integers(0, 5, length) for length in lengths]
    targets = [np.where(np.arange(length) == 0, -100, row) for row, length in zip(ids, lengths, strict=True)]
    for tokens in (2 * 8, 100 * 8):
        monkeypatch.setattr(scores, "BATCH_TOKENS", tokens)
        logits, labels = predict(model, Sequences(ids, targets))
        assert logits.shape == (5, 8, 5)
        assert labels.shape == (5, 8)
        for index, length in enumerate(lengths):
            alone, _ = model({"ids": ids[index][None]})
            np.testing.assert_allclose(logits[index, :length], alone[0], rtol=0, atol=1e-12)
            assert labels[index].tolist() == targets[index].tolist() + [-100] * (8 - length)


def test_padding_of_predictions_between_batches_is_zero(monkeypatch):
    monkeypatch.setattr(scores, "BATCH_TOKENS", 8)
    logits, labels = predict(random_model(5), Sequences([[1, 2], [3, 4, 0]], [[2, 3], [4, 0, 1]]))
    assert labels.tolist() == [[2, 3, -100], [4, 0, 1]]
    assert not logits[0, 2].any()
    assert logits[0, :2].all()
